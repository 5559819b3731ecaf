-- Planes: what the application may call.

CREATE OR REPLACE PROCEDURE planes_create(
  IN p_tailnum VARCHAR(6), IN p_year SMALLINT, IN p_type VARCHAR(30), IN p_manufacturer VARCHAR(40),
  IN p_model VARCHAR(30), IN p_engines TINYINT, IN p_seats SMALLINT, IN p_speed SMALLINT, IN p_engine VARCHAR(20))
COMMENT 'Add a plane.'
INSERT INTO planes (tailnum, year, type, manufacturer, model, engines, seats, speed, engine)
VALUES (p_tailnum, p_year, p_type, p_manufacturer, p_model, p_engines, p_seats, p_speed, p_engine);

CREATE OR REPLACE PROCEDURE planes_create_many(IN p_records JSON)
COMMENT 'Add many planes, or none.'
INSERT INTO planes (tailnum, year, type, manufacturer, model, engines, seats, speed, engine)
SELECT tailnum, year, type, manufacturer, model, engines, seats, speed, engine
  FROM JSON_TABLE(p_records, '$[*]' COLUMNS (
         tailnum VARCHAR(6) PATH '$.tailnum' ERROR ON ERROR,
         year SMALLINT PATH '$.year' ERROR ON ERROR,
         type VARCHAR(30) PATH '$.type' ERROR ON ERROR,
         manufacturer VARCHAR(40) PATH '$.manufacturer' ERROR ON ERROR,
         model VARCHAR(30) PATH '$.model' ERROR ON ERROR,
         engines TINYINT PATH '$.engines' ERROR ON ERROR,
         seats SMALLINT PATH '$.seats' ERROR ON ERROR,
         speed SMALLINT PATH '$.speed' ERROR ON ERROR,
         engine VARCHAR(20) PATH '$.engine' ERROR ON ERROR)) AS record;

CREATE OR REPLACE PROCEDURE planes_update(IN p_tailnum VARCHAR(6), IN p_seats SMALLINT, IN p_engine VARCHAR(20))
COMMENT 'A plane was refitted.'
UPDATE planes SET seats = COALESCE(p_seats, seats), engine = COALESCE(p_engine, engine) WHERE tailnum = p_tailnum;

CREATE OR REPLACE PROCEDURE planes_delete(IN p_tailnum VARCHAR(6))
COMMENT 'Remove a plane.'
DELETE FROM planes WHERE tailnum = p_tailnum;

CREATE OR REPLACE PROCEDURE planes_by_tailnum(IN p_tailnum VARCHAR(6))
COMMENT 'One plane.'
SELECT tailnum, year, type, manufacturer, model, engines, seats, speed, engine FROM planes WHERE tailnum = p_tailnum;

CREATE OR REPLACE PROCEDURE planes_by_manufacturer(
  IN p_manufacturer VARCHAR(40), IN p_after_tailnum VARCHAR(6), IN p_limit INT)
COMMENT 'Planes of one manufacturer, by tail number.'
SELECT tailnum, year, type, manufacturer, model, engines, seats, speed, engine
  FROM planes WHERE manufacturer = p_manufacturer AND tailnum > COALESCE(p_after_tailnum, '')
 ORDER BY tailnum LIMIT p_limit;

CREATE OR REPLACE FUNCTION planes_count() RETURNS BIGINT READS SQL DATA
COMMENT 'How many planes there are.'
RETURN (SELECT COUNT(*) FROM planes);
