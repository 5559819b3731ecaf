-- Observations as rows: what the application and jobs may call.

CREATE OR REPLACE PROCEDURE weather_rows_by_id(IN p_id VARCHAR(20))
COMMENT 'One observation.'
SELECT * FROM weather_rows WHERE id = p_id;

CREATE OR REPLACE FUNCTION weather_rows_count() RETURNS BIGINT READS SQL DATA
COMMENT 'How many observations there are.'
RETURN (SELECT COUNT(*) FROM weather_rows);

CREATE OR REPLACE PROCEDURE weather_rows_range(
  IN p_after_id VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
  IN p_until_id VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin, IN p_limit INT)
COMMENT 'Observations by id.'
SELECT * FROM weather_rows
 WHERE id > COALESCE(p_after_id, '') AND (p_until_id IS NULL OR id <= p_until_id) ORDER BY id LIMIT p_limit;

CREATE OR REPLACE PROCEDURE weather_rows_load(IN p_records JSON)
COMMENT 'Add many observations with their ids, or none.'
INSERT INTO weather_rows (id, origin, time_hour, temp, dewp, humid, wind_dir, wind_speed, wind_gust, precip, pressure, visib)
SELECT id, origin, time_hour, temp, dewp, humid, wind_dir, wind_speed, wind_gust, precip, pressure, visib
  FROM JSON_TABLE(p_records, '$[*]' COLUMNS (
         id VARCHAR(20) PATH '$.id' ERROR ON ERROR,
         origin CHAR(3) PATH '$.origin' ERROR ON ERROR,
         time_hour DATETIME PATH '$.time_hour' ERROR ON ERROR,
         temp DOUBLE PATH '$.temp' ERROR ON ERROR,
         dewp DOUBLE PATH '$.dewp' ERROR ON ERROR,
         humid DOUBLE PATH '$.humid' ERROR ON ERROR,
         wind_dir DOUBLE PATH '$.wind_dir' ERROR ON ERROR,
         wind_speed DOUBLE PATH '$.wind_speed' ERROR ON ERROR,
         wind_gust DOUBLE PATH '$.wind_gust' ERROR ON ERROR,
         precip DOUBLE PATH '$.precip' ERROR ON ERROR,
         pressure DOUBLE PATH '$.pressure' ERROR ON ERROR,
         visib DOUBLE PATH '$.visib' ERROR ON ERROR)) AS record;

CREATE OR REPLACE PROCEDURE weather_rows_by_keys(IN p_keys JSON)
COMMENT 'Some observations, locked until the end of the transaction.'
SELECT weather_rows.*
  FROM JSON_TABLE(p_keys, '$[*]' COLUMNS (
         id VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PATH '$.id' ERROR ON ERROR)) AS wanted
  STRAIGHT_JOIN weather_rows ON weather_rows.id = wanted.id FOR UPDATE;

CREATE OR REPLACE PROCEDURE weather_rows_remove_many(IN p_keys JSON)
COMMENT 'Remove some observations.'
DELETE weather_rows
  FROM JSON_TABLE(p_keys, '$[*]' COLUMNS (
         id VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PATH '$.id' ERROR ON ERROR)) AS wanted
  STRAIGHT_JOIN weather_rows ON weather_rows.id = wanted.id;
