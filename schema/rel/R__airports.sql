-- Airports: what the application may call.

CREATE OR REPLACE PROCEDURE airports_create(
  IN p_faa CHAR(3), IN p_name VARCHAR(80), IN p_lat DOUBLE, IN p_lon DOUBLE, IN p_alt INT, IN p_tz TINYINT,
  IN p_dst CHAR(1), IN p_tzone VARCHAR(40))
COMMENT 'Add an airport.'
INSERT INTO airports (faa, name, lat, lon, alt, tz, dst, tzone)
VALUES (p_faa, p_name, p_lat, p_lon, p_alt, p_tz, p_dst, p_tzone);

CREATE OR REPLACE PROCEDURE airports_create_many(IN p_records JSON)
COMMENT 'Add many airports, or none.'
INSERT INTO airports (faa, name, lat, lon, alt, tz, dst, tzone)
SELECT faa, name, lat, lon, alt, tz, dst, tzone
  FROM JSON_TABLE(p_records, '$[*]' COLUMNS (
         faa CHAR(3) PATH '$.faa' ERROR ON ERROR,
         name VARCHAR(80) PATH '$.name' ERROR ON ERROR,
         lat DOUBLE PATH '$.lat' ERROR ON ERROR,
         lon DOUBLE PATH '$.lon' ERROR ON ERROR,
         alt INT PATH '$.alt' ERROR ON ERROR,
         tz TINYINT PATH '$.tz' ERROR ON ERROR,
         dst CHAR(1) PATH '$.dst' ERROR ON ERROR,
         tzone VARCHAR(40) PATH '$.tzone')) AS record;

CREATE OR REPLACE PROCEDURE airports_update(
  IN p_faa CHAR(3), IN p_name VARCHAR(80), IN p_alt INT, IN p_tzone VARCHAR(40))
COMMENT 'Change what may change of an airport; null leaves a column as it is.'
BEGIN
  IF p_alt < -1500 THEN
    SIGNAL SQLSTATE '45001' SET MESSAGE_TEXT = 'No airport lies 1,500 feet below the sea';
  END IF;
  UPDATE airports
     SET name = COALESCE(p_name, name), alt = COALESCE(p_alt, alt), tzone = COALESCE(p_tzone, tzone)
   WHERE faa = p_faa;
END;

CREATE OR REPLACE PROCEDURE airports_delete(IN p_faa CHAR(3))
COMMENT 'Remove an airport from which nothing departs.'
DELETE FROM airports WHERE faa = p_faa;

CREATE OR REPLACE PROCEDURE airports_by_faa(IN p_faa CHAR(3))
COMMENT 'One airport.'
SELECT faa, name, lat, lon, alt, tz, dst, tzone FROM airports WHERE faa = p_faa;

CREATE OR REPLACE PROCEDURE airports_nearest(IN p_lat DOUBLE, IN p_lon DOUBLE, IN p_limit INT)
COMMENT 'Airports by their distance from a point, nearest first.'
SELECT faa, name, lat, lon, alt, tz, dst, tzone,
       ROUND(ST_DISTANCE_SPHERE(POINT(p_lon, p_lat), POINT(lon, lat)) / 1000, 1) AS km
  FROM airports ORDER BY km, faa LIMIT p_limit;

CREATE OR REPLACE PROCEDURE airports_by_zone(IN p_tzone VARCHAR(40), IN p_after_faa CHAR(3), IN p_limit INT)
COMMENT 'Airports of a time zone, by code.'
SELECT faa, name, lat, lon, alt, tz, dst, tzone
  FROM airports WHERE tzone = p_tzone AND faa > COALESCE(p_after_faa, '') ORDER BY faa LIMIT p_limit;

CREATE OR REPLACE FUNCTION airports_count() RETURNS BIGINT READS SQL DATA
COMMENT 'How many airports there are.'
RETURN (SELECT COUNT(*) FROM airports);
