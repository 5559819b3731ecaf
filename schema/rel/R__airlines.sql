-- Airlines: what the application may call.

CREATE OR REPLACE PROCEDURE airlines_create(IN p_carrier CHAR(2), IN p_name VARCHAR(60))
COMMENT 'Add a carrier.'
INSERT INTO airlines (carrier, name) VALUES (p_carrier, p_name);

CREATE OR REPLACE PROCEDURE airlines_create_many(IN p_records JSON)
COMMENT 'Add many carriers, or none.'
INSERT INTO airlines (carrier, name)
SELECT carrier, name
  FROM JSON_TABLE(p_records, '$[*]' COLUMNS (
         carrier CHAR(2) PATH '$.carrier' ERROR ON ERROR,
         name VARCHAR(60) PATH '$.name' ERROR ON ERROR)) AS record;

CREATE OR REPLACE PROCEDURE airlines_update(IN p_carrier CHAR(2), IN p_name VARCHAR(60))
COMMENT 'Rename a carrier.'
UPDATE airlines SET name = COALESCE(p_name, name) WHERE carrier = p_carrier;

CREATE OR REPLACE PROCEDURE airlines_delete(IN p_carrier CHAR(2))
COMMENT 'Remove a carrier that has no flights.'
DELETE FROM airlines WHERE carrier = p_carrier;

CREATE OR REPLACE PROCEDURE airlines_by_carrier(IN p_carrier CHAR(2))
COMMENT 'One carrier.'
SELECT carrier, name FROM airlines WHERE carrier = p_carrier;

CREATE OR REPLACE VIEW airlines_all AS
SELECT carrier, name FROM airlines ORDER BY carrier;

CREATE OR REPLACE FUNCTION airlines_count() RETURNS BIGINT READS SQL DATA
COMMENT 'How many carriers there are.'
RETURN (SELECT COUNT(*) FROM airlines);
