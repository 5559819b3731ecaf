-- What was carried out, by event: written in the same transaction as the effect, so that an event has its effect once.
CREATE TABLE beds_ledger (
  guid CHAR(36) NOT NULL PRIMARY KEY,
  answer MEDIUMTEXT NOT NULL,
  expires_at DATETIME NOT NULL,
  KEY expires (expires_at)
) COMMENT 'Which events were carried out, and what was answered' CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
