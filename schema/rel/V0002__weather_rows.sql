-- Observations as rows: what a migration from the collection weather fills.

CREATE TABLE weather_rows (
  id VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL PRIMARY KEY COMMENT 'station and hour',
  origin CHAR(3) NOT NULL COMMENT 'station',
  time_hour DATETIME NOT NULL,
  temp DOUBLE NULL,
  dewp DOUBLE NULL,
  humid DOUBLE NULL,
  wind_dir DOUBLE NULL,
  wind_speed DOUBLE NULL,
  wind_gust DOUBLE NULL,
  precip DOUBLE NULL,
  pressure DOUBLE NULL,
  visib DOUBLE NULL,
  UNIQUE KEY station_hour (origin, time_hour)
) COMMENT 'Hourly observations';
