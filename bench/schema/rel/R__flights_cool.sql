-- Older flights, in a table of their own: the target of bench/jobs.py beside pt-archiver.

CREATE OR REPLACE PROCEDURE flights_cool_range(IN p_after_id BIGINT, IN p_until_id BIGINT, IN p_limit INT)
COMMENT 'Flights by id.'
SELECT * FROM flights_cool
 WHERE id > COALESCE(p_after_id, 0) AND id <= COALESCE(p_until_id, 9223372036854775807) ORDER BY id LIMIT p_limit;

CREATE OR REPLACE PROCEDURE flights_cool_load(IN p_records JSON)
COMMENT 'Add many flights with their ids, or none.'
INSERT INTO flights_cool (id, time_hour, carrier, flight, origin, dest, tailnum, sched_dep_time, dep_time, dep_delay,
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

CREATE OR REPLACE PROCEDURE flights_cool_by_keys(IN p_keys JSON)
COMMENT 'Some flights, locked until the end of the transaction.'
SELECT flights_cool.*
  FROM JSON_TABLE(p_keys, '$[*]' COLUMNS (id BIGINT PATH '$.id' ERROR ON ERROR)) AS wanted
  STRAIGHT_JOIN flights_cool ON flights_cool.id = wanted.id FOR UPDATE;

CREATE OR REPLACE PROCEDURE flights_cool_remove_many(IN p_keys JSON)
COMMENT 'Remove some flights.'
DELETE flights_cool
  FROM JSON_TABLE(p_keys, '$[*]' COLUMNS (id BIGINT PATH '$.id' ERROR ON ERROR)) AS wanted
  STRAIGHT_JOIN flights_cool ON flights_cool.id = wanted.id;
