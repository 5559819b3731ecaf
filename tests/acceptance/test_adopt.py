"""From the dump of a database to the first call, as docs/howto/adopt.md has it."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from beds.errors import StackError
from beds.stack.dump import load_dump
from beds.stack.stack import Stack
from tests.conftest import PORT_BASE, ROOT, run

DUMP = """\
/*M!999999\\- enable the sandbox mode */
-- MariaDB dump 10.19  Distrib 10.11, for debian-linux-gnu (x86_64)
/*!40101 SET @OLD_CHARACTER_SET_CLIENT=@@CHARACTER_SET_CLIENT */;
/*!40101 SET NAMES utf8mb4 */;
/*!40014 SET @OLD_FOREIGN_KEY_CHECKS=@@FOREIGN_KEY_CHECKS, FOREIGN_KEY_CHECKS=0 */;
CREATE DATABASE /*!32312 IF NOT EXISTS*/ `shop` /*!40100 DEFAULT CHARACTER SET utf8mb4 */;
USE `shop`;
DROP TABLE IF EXISTS `customer`;
CREATE TABLE `customer` (
  `customer_id` int(11) NOT NULL AUTO_INCREMENT,
  `name` varchar(60) NOT NULL,
  `note` text DEFAULT NULL,
  `joined` timestamp NOT NULL DEFAULT current_timestamp(),
  PRIMARY KEY (`customer_id`),
  KEY `by_name` (`name`)
) ENGINE=InnoDB AUTO_INCREMENT=4 DEFAULT CHARSET=utf8mb4;
LOCK TABLES `customer` WRITE;
INSERT INTO `customer` VALUES (1,'Ada','USE `shop`;
CREATE DATABASE nothing; DEFINER=`root`@`localhost` shop.customer','2020-01-01 00:00:00'),
(2,'Grace',NULL,'2021-01-01 00:00:00'),(3,'Ada',NULL,'2022-01-01 00:00:00');
UNLOCK TABLES;
DELIMITER ;;
/*!50003 CREATE*/ /*!50017 DEFINER=`root`@`localhost`*/ /*!50003 TRIGGER `trim_name`
BEFORE INSERT ON `customer` FOR EACH ROW
BEGIN
  SET NEW.name = TRIM(NEW.name);
END */;;
CREATE DEFINER=`root`@`localhost` PROCEDURE `rename_customer`(
  IN in_id INT, IN in_name VARCHAR(60), OUT before_name VARCHAR(60))
BEGIN
  SELECT name INTO before_name FROM shop.customer WHERE customer_id = in_id;
  UPDATE shop.customer SET name = in_name WHERE customer_id = in_id;
END ;;
DELIMITER ;
/*!50001 CREATE ALGORITHM=UNDEFINED */
/*!50013 DEFINER=`root`@`localhost` SQL SECURITY DEFINER */
/*!50001 VIEW `names` AS select `shop`.`customer`.`name` AS `name`,count(0) AS `times`
from `shop`.`customer` group by 1 */;
"""


@pytest.mark.timeout(280)
def test_from_a_dump_to_the_first_call_in_five_commands(tmp_path: Path, stack: Stack) -> None:
    (tmp_path / "shop.sql").write_text(DUMP)
    page = (ROOT / "docs" / "howto" / "adopt.md").read_text()
    block = re.search(r"```sh\n(beds init shop.*?)```", page, re.DOTALL)
    assert block is not None
    commands = [line.partition("  #")[0].strip() for line in block[1].splitlines()]
    assert len(commands) == 5
    shop = tmp_path / "shop"
    try:
        for number, line in enumerate(commands):
            if "stack load" in line:
                line += f" --port-base {PORT_BASE + 2000}"
            done = run(tmp_path if number == 0 else shop, "bash", "-c", line, seconds=180)
            assert done.returncode == 0, (line, done.stderr)
        assert "Ada" in done.stdout
        again = run(shop, "beds", "schema", "draft", "--check")
        assert again.returncode == 0, again.stdout
        renamed = run(shop, "beds", "call", "--json", "RenameCustomer.create_record", "in_id=2", "in_name= Grace H. ")
        assert json.loads(renamed.stdout)["record"] == {"before_name": "Grace"}, renamed.stderr
        names = run(shop, "beds", "call", "--json", "Names.fetch_records")
        assert {"name": "Ada", "times": 2} in json.loads(names.stdout)["records"]
        run(shop, "beds", "stack", "sql", "-e", "ALTER TABLE customer ADD COLUMN phone VARCHAR(20)")
        drifted = run(shop, "beds", "schema", "draft", "--check")
        assert drifted.returncode == 1
        assert "table customer: phone is new: varchar(20)" in drifted.stdout
    finally:
        run(shop, "beds", "down", "--wipe")


def test_a_row_of_a_dump_stays_as_it_is(stack: Stack, tmp_path: Path) -> None:
    packed = tmp_path / "shop.sql.gz"
    packed.write_bytes(gzip.compress(DUMP.replace("`customer`", "`adopted_customer`").replace(
        "shop.customer", "shop.adopted_customer").replace("trim_name", "trim_adopted").encode()))  # fmt: skip
    sent: list[int] = []
    try:
        assert "adopted_customer" in load_dump(stack, packed, sent.append)
        (row,) = stack.mariadb.ask("SELECT note FROM beds.adopted_customer WHERE customer_id = 1")
        assert row["note"] == "USE `shop`;\nCREATE DATABASE nothing; DEFINER=`root`@`localhost` shop.adopted_customer"
        assert sum(sent) == packed.stat().st_size
    finally:
        for statement in ("TABLE adopted_customer", "PROCEDURE rename_customer", "VIEW names"):
            stack.mariadb.ask(f"DROP {statement.replace(' ', ' IF EXISTS beds.')}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"CREATE TABL x;\n", "error in your SQL syntax"),
        (b"\x1f\x8bnot gzip at all", "cannot be read"),
    ],
)
def test_a_dump_that_cannot_be_loaded(stack: Stack, tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "broken.sql"
    file.write_bytes(content)
    with pytest.raises(StackError, match=said):
        load_dump(stack, file)
