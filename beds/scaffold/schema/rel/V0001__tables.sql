CREATE TABLE books (
  isbn CHAR(13) NOT NULL PRIMARY KEY,
  title VARCHAR(200) NOT NULL,
  copies INT NOT NULL DEFAULT 0,
  CONSTRAINT copies_are_not_negative CHECK (copies >= 0)
) COMMENT 'What the library has';
