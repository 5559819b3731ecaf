-- Books: what the application may call.

CREATE OR REPLACE PROCEDURE books_create(IN p_isbn CHAR(13), IN p_title VARCHAR(200), IN p_copies INT)
COMMENT 'Add a book.'
INSERT INTO books (isbn, title, copies) VALUES (p_isbn, p_title, COALESCE(p_copies, 0));

CREATE OR REPLACE PROCEDURE books_update(IN p_isbn CHAR(13), IN p_title VARCHAR(200), IN p_copies INT)
COMMENT 'Change what is given, and leave the rest.'
UPDATE books SET title = COALESCE(p_title, title), copies = COALESCE(p_copies, copies) WHERE isbn = p_isbn;

CREATE OR REPLACE PROCEDURE books_delete(IN p_isbn CHAR(13))
COMMENT 'Remove a book of which no copy is left.'
BEGIN
  IF (SELECT copies FROM books WHERE isbn = p_isbn FOR UPDATE) > 0 THEN
    SIGNAL SQLSTATE '45001' SET MESSAGE_TEXT = 'there are copies left';
  END IF;
  DELETE FROM books WHERE isbn = p_isbn;
END;

CREATE OR REPLACE PROCEDURE books_by_isbn(IN p_isbn CHAR(13))
COMMENT 'One book.'
SELECT isbn, title, copies FROM books WHERE isbn = p_isbn;

CREATE OR REPLACE PROCEDURE books_titled(IN p_title VARCHAR(200), IN p_after_isbn CHAR(13), IN p_limit INT)
COMMENT 'Books whose title begins so, page by page.'
SELECT isbn, title, copies FROM books
 WHERE LEFT(title, CHAR_LENGTH(p_title)) = p_title AND isbn > COALESCE(p_after_isbn, '')
 ORDER BY isbn LIMIT p_limit;
