-- What workers may know of the routines that they call. They see no routine's text themselves, so these two run with the
-- rights of the DBA who applied them; dynamic SQL, since MariaDB looks a name up by key only where it is a constant.
CREATE OR REPLACE PROCEDURE beds_definition(IN p_kind VARCHAR(9), IN p_name VARCHAR(64))
SQL SECURITY DEFINER
COMMENT 'The SQL mode and text of a procedure or function'
EXECUTE IMMEDIATE CONCAT('SHOW CREATE ', IF(p_kind = 'FUNCTION', 'FUNCTION', 'PROCEDURE'), ' `',
                         REPLACE(p_name, '`', '``'), '`');

CREATE OR REPLACE PROCEDURE beds_columns(IN p_table VARCHAR(64))
SQL SECURITY DEFINER
COMMENT 'The columns of a table: what they keep of the values that a procedure puts into them'
EXECUTE IMMEDIATE CONCAT(
  'SELECT COLUMN_NAME AS name, COLUMN_TYPE AS declared, COLLATION_NAME AS collation FROM information_schema.COLUMNS ',
  'WHERE TABLE_SCHEMA = ', QUOTE(DATABASE()), ' AND TABLE_NAME = ', QUOTE(p_table), ' ORDER BY ORDINAL_POSITION');
