-- Flights: what the application may call.

CREATE OR REPLACE PROCEDURE flights_create(
  OUT p_id BIGINT,
  IN p_time_hour DATETIME, IN p_carrier CHAR(2), IN p_flight SMALLINT, IN p_origin CHAR(3), IN p_dest CHAR(3),
  IN p_tailnum VARCHAR(6), IN p_sched_dep_time SMALLINT, IN p_dep_time SMALLINT, IN p_dep_delay SMALLINT,
  IN p_sched_arr_time SMALLINT, IN p_arr_time SMALLINT, IN p_arr_delay SMALLINT, IN p_air_time SMALLINT,
  IN p_distance SMALLINT)
COMMENT 'Add a flight; its id is made here.'
BEGIN
  IF p_origin = p_dest THEN
    SIGNAL SQLSTATE '45002' SET MESSAGE_TEXT = 'A flight ends at another airport than it starts from';
  END IF;
  INSERT INTO flights (time_hour, carrier, flight, origin, dest, tailnum, sched_dep_time, dep_time, dep_delay,
                       sched_arr_time, arr_time, arr_delay, air_time, distance)
  VALUES (p_time_hour, p_carrier, p_flight, p_origin, p_dest, p_tailnum, p_sched_dep_time, p_dep_time, p_dep_delay,
          p_sched_arr_time, p_arr_time, p_arr_delay, p_air_time, p_distance);
  SET p_id = LAST_INSERT_ID();
END;

CREATE OR REPLACE PROCEDURE flights_create_many(IN p_records JSON)
COMMENT 'Add many flights, or none.'
INSERT INTO flights (time_hour, carrier, flight, origin, dest, tailnum, sched_dep_time, dep_time, dep_delay,
                     sched_arr_time, arr_time, arr_delay, air_time, distance)
SELECT time_hour, carrier, flight, origin, dest, tailnum, sched_dep_time, dep_time, dep_delay,
       sched_arr_time, arr_time, arr_delay, air_time, distance
  FROM JSON_TABLE(p_records, '$[*]' COLUMNS (
         time_hour DATETIME PATH '$.time_hour' ERROR ON ERROR,
         carrier CHAR(2) PATH '$.carrier' ERROR ON ERROR,
         flight SMALLINT PATH '$.flight' ERROR ON ERROR,
         origin CHAR(3) PATH '$.origin' ERROR ON ERROR,
         dest CHAR(3) PATH '$.dest' ERROR ON ERROR,
         tailnum VARCHAR(6) PATH '$.tailnum' ERROR ON ERROR,
         sched_dep_time SMALLINT PATH '$.sched_dep_time' ERROR ON ERROR,
         dep_time SMALLINT PATH '$.dep_time' ERROR ON ERROR,
         dep_delay SMALLINT PATH '$.dep_delay' ERROR ON ERROR,
         sched_arr_time SMALLINT PATH '$.sched_arr_time' ERROR ON ERROR,
         arr_time SMALLINT PATH '$.arr_time' ERROR ON ERROR,
         arr_delay SMALLINT PATH '$.arr_delay' ERROR ON ERROR,
         air_time SMALLINT PATH '$.air_time' ERROR ON ERROR,
         distance SMALLINT PATH '$.distance' ERROR ON ERROR)) AS record;

CREATE OR REPLACE PROCEDURE flights_update(
  IN p_id BIGINT, IN p_tailnum VARCHAR(6), IN p_dep_time SMALLINT, IN p_dep_delay SMALLINT, IN p_arr_time SMALLINT,
  IN p_arr_delay SMALLINT, IN p_air_time SMALLINT)
COMMENT 'What became of a flight; null leaves a column as it is.'
UPDATE flights
   SET tailnum = COALESCE(p_tailnum, tailnum), dep_time = COALESCE(p_dep_time, dep_time),
       dep_delay = COALESCE(p_dep_delay, dep_delay), arr_time = COALESCE(p_arr_time, arr_time),
       arr_delay = COALESCE(p_arr_delay, arr_delay), air_time = COALESCE(p_air_time, air_time)
 WHERE id = p_id;

CREATE OR REPLACE PROCEDURE flights_delete(IN p_id BIGINT)
COMMENT 'Remove a flight.'
DELETE FROM flights WHERE id = p_id;

CREATE OR REPLACE PROCEDURE flights_by_id(IN p_id BIGINT)
COMMENT 'One flight.'
SELECT * FROM flights WHERE id = p_id;

CREATE OR REPLACE PROCEDURE flights_by_route(
  IN p_origin CHAR(3), IN p_dest CHAR(3), IN p_after_id BIGINT, IN p_limit INT)
COMMENT 'Flights from an airport, to another or to anywhere, in the order in which they were added.'
SELECT * FROM flights
 WHERE origin = p_origin AND (p_dest IS NULL OR dest = p_dest) AND id > COALESCE(p_after_id, 0)
 ORDER BY id LIMIT p_limit;

CREATE OR REPLACE PROCEDURE flights_busiest_routes(IN p_limit INT)
COMMENT 'Routes with the most departures.'
SELECT origin, dest, COUNT(*) AS flights, ROUND(AVG(dep_delay), 1) AS mean_delay
  FROM flights GROUP BY origin, dest ORDER BY flights DESC, origin, dest LIMIT p_limit;

CREATE OR REPLACE PROCEDURE flights_most_delayed(IN p_origin CHAR(3), IN p_limit INT)
COMMENT 'Flights from an airport by their delay at departure, worst first.'
SELECT * FROM flights WHERE origin = p_origin AND dep_delay IS NOT NULL ORDER BY dep_delay DESC, id LIMIT p_limit;

CREATE OR REPLACE FUNCTION flights_count() RETURNS BIGINT READS SQL DATA
COMMENT 'How many flights there are.'
RETURN (SELECT COUNT(*) FROM flights);

-- What jobs call: by key ranges, by keys, and all of a chunk or nothing.

CREATE OR REPLACE PROCEDURE flights_range(IN p_after_id BIGINT, IN p_until_id BIGINT, IN p_limit INT)
COMMENT 'Flights by id.'
SELECT * FROM flights
 WHERE id > COALESCE(p_after_id, 0) AND id <= COALESCE(p_until_id, 9223372036854775807) ORDER BY id LIMIT p_limit;

CREATE OR REPLACE PROCEDURE flights_load(IN p_records JSON)
COMMENT 'Add many flights with their ids, or none.'
INSERT INTO flights (id, time_hour, carrier, flight, origin, dest, tailnum, sched_dep_time, dep_time, dep_delay,
                     sched_arr_time, arr_time, arr_delay, air_time, distance)
SELECT id, time_hour, carrier, flight, origin, dest, tailnum, sched_dep_time, dep_time, dep_delay,
       sched_arr_time, arr_time, arr_delay, air_time, distance
  FROM JSON_TABLE(p_records, '$[*]' COLUMNS (
         id BIGINT PATH '$.id' ERROR ON ERROR,
         time_hour DATETIME PATH '$.time_hour' ERROR ON ERROR,
         carrier CHAR(2) PATH '$.carrier' ERROR ON ERROR,
         flight SMALLINT PATH '$.flight' ERROR ON ERROR,
         origin CHAR(3) PATH '$.origin' ERROR ON ERROR,
         dest CHAR(3) PATH '$.dest' ERROR ON ERROR,
         tailnum VARCHAR(6) PATH '$.tailnum' ERROR ON ERROR,
         sched_dep_time SMALLINT PATH '$.sched_dep_time' ERROR ON ERROR,
         dep_time SMALLINT PATH '$.dep_time' ERROR ON ERROR,
         dep_delay SMALLINT PATH '$.dep_delay' ERROR ON ERROR,
         sched_arr_time SMALLINT PATH '$.sched_arr_time' ERROR ON ERROR,
         arr_time SMALLINT PATH '$.arr_time' ERROR ON ERROR,
         arr_delay SMALLINT PATH '$.arr_delay' ERROR ON ERROR,
         air_time SMALLINT PATH '$.air_time' ERROR ON ERROR,
         distance SMALLINT PATH '$.distance' ERROR ON ERROR)) AS record;

CREATE OR REPLACE PROCEDURE flights_by_keys(IN p_keys JSON)
COMMENT 'Some flights, locked until the end of the transaction.'
SELECT flights.*
  FROM JSON_TABLE(p_keys, '$[*]' COLUMNS (id BIGINT PATH '$.id' ERROR ON ERROR)) AS wanted
  STRAIGHT_JOIN flights ON flights.id = wanted.id FOR UPDATE;

CREATE OR REPLACE PROCEDURE flights_remove_many(IN p_keys JSON)
COMMENT 'Remove some flights.'
DELETE flights
  FROM JSON_TABLE(p_keys, '$[*]' COLUMNS (id BIGINT PATH '$.id' ERROR ON ERROR)) AS wanted
  STRAIGHT_JOIN flights ON flights.id = wanted.id;

CREATE OR REPLACE FUNCTION flights_digest(p_after_id BIGINT, p_until_id BIGINT) RETURNS JSON READS SQL DATA
COMMENT 'How many flights a range has, and the sum of their hashes.'
RETURN (
  SELECT JSON_OBJECT('records', COUNT(*), 'digest', COALESCE(SUM(CAST(CONV(LEFT(MD5(CONCAT_WS('|', id, time_hour, carrier,
         flight, origin, dest, COALESCE(tailnum, '-'), sched_dep_time, COALESCE(dep_time, '-'), COALESCE(dep_delay, '-'),
         sched_arr_time, COALESCE(arr_time, '-'), COALESCE(arr_delay, '-'), COALESCE(air_time, '-'), distance)), 15), 16,
         10) AS UNSIGNED)), 0))
    FROM flights WHERE id > COALESCE(p_after_id, 0) AND id <= COALESCE(p_until_id, 9223372036854775807));

CREATE OR REPLACE PROCEDURE flights_delays(IN p_month TINYINT)
COMMENT 'Departures and minutes of delay by route, in one month (UTC).'
SELECT origin, dest, p_month AS month, COUNT(*) AS flights, COUNT(dep_delay) AS departed,
       CAST(COALESCE(SUM(dep_delay), 0) AS SIGNED) AS delay_minutes, MAX(dep_delay) AS worst
  FROM flights
 WHERE time_hour >= MAKEDATE(2013, 1) + INTERVAL p_month - 1 MONTH AND time_hour < MAKEDATE(2013, 1) + INTERVAL p_month MONTH
 GROUP BY origin, dest ORDER BY origin, dest;
