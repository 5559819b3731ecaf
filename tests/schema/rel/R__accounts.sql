CREATE OR REPLACE PROCEDURE accounts_create(IN p_id VARCHAR(40), IN p_amount BIGINT, IN p_pin VARCHAR(40))
INSERT INTO accounts (id, balance, pin) VALUES (p_id, p_amount, p_pin);

CREATE OR REPLACE PROCEDURE accounts_deposit(IN p_id VARCHAR(40), IN p_amount BIGINT)
UPDATE accounts SET balance = balance + p_amount WHERE id = p_id;

CREATE OR REPLACE PROCEDURE accounts_delete(IN p_pin VARCHAR(40))
DELETE FROM accounts WHERE pin = p_pin;

CREATE OR REPLACE PROCEDURE accounts_by_id(IN p_id VARCHAR(40))
SELECT id, balance FROM accounts WHERE id = p_id;

CREATE OR REPLACE PROCEDURE accounts_by_pin(IN p_pin VARCHAR(40))
SELECT id, balance FROM accounts WHERE pin = p_pin;

CREATE OR REPLACE PROCEDURE transfers_create(
  IN p_id VARCHAR(40), IN p_source VARCHAR(40), IN p_target VARCHAR(40), IN p_amount BIGINT)
BEGIN
  UPDATE accounts SET balance = balance - p_amount WHERE id = p_source;
  UPDATE accounts SET balance = balance + p_amount WHERE id = p_target;
  INSERT INTO transfers (id, source, target, amount) VALUES (p_id, p_source, p_target, p_amount);
END;

CREATE OR REPLACE PROCEDURE transfers_copies(IN p_after_id VARCHAR(40), IN p_limit INT)
SELECT id, COUNT(*) AS copies FROM transfers WHERE id > COALESCE(p_after_id, '') GROUP BY id ORDER BY id LIMIT p_limit;
