CREATE OR REPLACE PROCEDURE pairs_create(IN p_id INT, IN p_a INT, IN p_b INT)
INSERT INTO pairs (id, a, b) VALUES (p_id, p_a, p_b);

CREATE OR REPLACE PROCEDURE pairs_update(IN p_id INT, IN p_a INT, IN p_b INT)
UPDATE pairs SET a = p_a, b = p_b WHERE id = p_id;

CREATE OR REPLACE PROCEDURE pairs_echo(IN p_a INT, IN p_b INT)
SELECT p_a AS a, p_b AS b;
