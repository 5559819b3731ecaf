-- New York's flights of 2013: tables. Times are UTC.

CREATE TABLE airlines (
  carrier CHAR(2) NOT NULL PRIMARY KEY COMMENT 'IATA code',
  name VARCHAR(60) NOT NULL
) COMMENT 'Carriers';

CREATE TABLE airports (
  faa CHAR(3) NOT NULL PRIMARY KEY COMMENT 'FAA code',
  name VARCHAR(80) NOT NULL,
  lat DOUBLE NOT NULL COMMENT 'degrees north',
  lon DOUBLE NOT NULL COMMENT 'degrees east',
  alt INT NOT NULL COMMENT 'feet',
  tz TINYINT NOT NULL COMMENT 'hours from UTC',
  dst CHAR(1) NOT NULL COMMENT 'A: by US rules, U: unknown, N: none',
  tzone VARCHAR(40) NULL COMMENT 'IANA time zone',
  CONSTRAINT lat_is_a_latitude CHECK (lat BETWEEN -90 AND 90),
  CONSTRAINT lon_is_a_longitude CHECK (lon BETWEEN -180 AND 180)
) COMMENT 'Airports of the United States';

CREATE TABLE planes (
  tailnum VARCHAR(6) NOT NULL PRIMARY KEY,
  year SMALLINT NULL COMMENT 'of manufacture',
  type VARCHAR(30) NOT NULL,
  manufacturer VARCHAR(40) NOT NULL,
  model VARCHAR(30) NOT NULL,
  engines TINYINT NOT NULL,
  seats SMALLINT NOT NULL,
  speed SMALLINT NULL COMMENT 'miles per hour',
  engine VARCHAR(20) NOT NULL
) COMMENT 'Aircraft by tail number';

-- A flight's plane and destination are no foreign keys: 721 tail numbers and four destinations
-- (BQN, PSE, SJU, STT) of the source are in neither of the tables above.
CREATE TABLE flights (
  id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
  time_hour DATETIME NOT NULL COMMENT 'scheduled hour of departure',
  carrier CHAR(2) NOT NULL,
  flight SMALLINT NOT NULL COMMENT 'flight number',
  origin CHAR(3) NOT NULL,
  dest CHAR(3) NOT NULL,
  tailnum VARCHAR(6) NULL,
  sched_dep_time SMALLINT NOT NULL COMMENT 'hhmm, local',
  dep_time SMALLINT NULL COMMENT 'hhmm, local; null: cancelled',
  dep_delay SMALLINT NULL COMMENT 'minutes',
  sched_arr_time SMALLINT NOT NULL COMMENT 'hhmm, local',
  arr_time SMALLINT NULL COMMENT 'hhmm, local',
  arr_delay SMALLINT NULL COMMENT 'minutes',
  air_time SMALLINT NULL COMMENT 'minutes',
  distance SMALLINT NOT NULL COMMENT 'miles',
  UNIQUE KEY one_flight (time_hour, carrier, flight),
  KEY by_route (origin, dest, id),
  KEY by_delay (dep_delay),
  CONSTRAINT flown_by FOREIGN KEY (carrier) REFERENCES airlines (carrier),
  CONSTRAINT starts_at FOREIGN KEY (origin) REFERENCES airports (faa)
) COMMENT 'Departures from New York in 2013';
