-- Note an event's answer and commit: one round trip less than a commit of its own. A guid that is there already is an
-- error, and the caller rolls back what it did.
CREATE OR REPLACE PROCEDURE beds_ledger_commit(IN p_guid CHAR(36), IN p_answer MEDIUMTEXT, IN p_ttl INT)
BEGIN
  INSERT INTO beds_ledger (guid, answer, expires_at) VALUES (p_guid, p_answer, UTC_TIMESTAMP() + INTERVAL p_ttl SECOND);
  COMMIT;
END;

CREATE OR REPLACE PROCEDURE beds_ledger_find(IN p_guid CHAR(36))
SELECT answer FROM beds_ledger WHERE guid = p_guid;

CREATE OR REPLACE PROCEDURE beds_ledger_purge(IN p_limit INT)
DELETE FROM beds_ledger WHERE expires_at < UTC_TIMESTAMP() ORDER BY expires_at LIMIT p_limit;
