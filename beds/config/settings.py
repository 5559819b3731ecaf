"""Reads beds.toml, the environment and the env_file into one frozen `Settings`.

Precedence, highest first: `BEDS_…__…` environment variables, the `env_file` named in beds.toml, beds.toml.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from beds.config.http import Http
from beds.config.sections import (
    BROKER_NAMES,
    ROOT,
    Amqp,
    Broker,
    BrokerName,
    Calgon,
    Cold,
    Databases,
    Flower,
    Ledger,
    Logging,
    Metrics,
    Node,
    Retry,
    Schema,
    Services,
)
from beds.errors import ConfigurationError, nearest

CONFIG_VARIABLE = "BEDS_CONFIG"
"""Environment variable that names the configuration file; `beds.toml` in the working folder when unset."""


DEFAULT_FILE = "beds.toml"


class Settings(BaseSettings):
    """The configuration of a node; made by `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix="BEDS_",
        env_prefix_target="all",  # `schema` is an alias, and takes the prefix too
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    env_file: Path | None = None
    """A file of BEDS_… variables, such as secrets outside of version control. Relative to beds.toml."""
    node: Node = Node()
    amqp: Amqp = Amqp()
    services: Services = Services()
    brokers: dict[BrokerName, Broker] = {}
    databases: Databases = Databases()
    cold: dict[str, Cold] = {}
    retry: Retry = Retry()
    ledger: Ledger = Ledger()
    calgon: Calgon = Calgon()
    logging: Logging = Logging()
    metrics: Metrics = Metrics()
    flower: Flower = Flower()
    http: Http = Http()
    # The TOML key is `schema`; pydantic's BaseModel has an attribute of that name.
    schema_: Schema = Field(default=Schema(), alias="schema")
    _file: Path = PrivateAttr(default_factory=lambda: Path.cwd() / DEFAULT_FILE)

    @field_validator("brokers", mode="before")
    @classmethod
    def _dotted_names(cls, value: Any) -> Any:
        """An environment variable cannot hold a dot: BEDS_BROKERS__REC_READ__… means "rec.read"."""
        if not isinstance(value, Mapping):
            return value
        dotted = {name.replace(".", "_"): name for name in BROKER_NAMES}
        merged: dict[str, Any] = {}
        for key, entry in value.items():
            name = dotted.get(str(key), str(key))
            merged[name] = {**merged.get(name, {}), **entry} if isinstance(entry, Mapping) else entry
        if isinstance(merged.get("admin"), Mapping):
            merged["admin"] = {"pool": "threads", **merged["admin"]}
        return merged

    @field_validator("brokers")
    @classmethod
    def _records_need_no_slots(cls, value: dict[str, Broker]) -> dict[str, Broker]:
        if "admin" in value and value["admin"].pool == "slots":
            raise ValueError("admin.pool = slots: slots execute events, not records; take threads or solo")
        return value

    @model_validator(mode="after")
    def _limits_below_the_consumer_timeout(self) -> Settings:
        for name, broker in self.brokers.items():
            if broker.time_limit >= self.amqp.consumer_timeout * 0.9:
                raise ValueError(
                    f"brokers.{name}.time_limit = {broker.time_limit} is not well below amqp.consumer_timeout = "
                    f"{self.amqp.consumer_timeout}: RabbitMQ would end the worker; lower it, or raise both timeouts"
                )
        return self

    def broker(self, name: str) -> Broker:
        """The pool settings of one broker type; defaults where beds.toml has none."""
        # Threads: records are written while others arrive, and one process must consume all metrics.
        default = Broker(pool="threads") if name == "admin" else Broker()
        return self.brokers.get(name, default)  # type: ignore[call-overload,no-any-return]

    @property
    def file(self) -> Path:
        """The path of beds.toml, even if the file does not exist."""
        return self._file

    @property
    def root(self) -> Path:
        """The folder of beds.toml; relative paths start here."""
        return self._file.parent

    @property
    def schema_path(self) -> Path:
        return self.root / self.schema_.path

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # load_settings passes the file's content as arguments, so these have the lowest precedence.
        return env_settings, dotenv_settings, init_settings


def load_settings(path: Path | str | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the configuration of this node.

    Args:
        path: the file; else `$BEDS_CONFIG`; else `beds.toml` in the working folder, which may be missing.
        environ: only for reading `$BEDS_CONFIG`; the process environment when absent.

    Raises:
        ConfigurationError: the file cannot be read, or a key or value is invalid; names the file, the key and a remedy.
    """
    named = path or (os.environ if environ is None else environ).get(CONFIG_VARIABLE)
    file = Path(named or DEFAULT_FILE).resolve()
    data = _read(file, must_exist=named is not None)
    known = _keys_at(())
    # pydantic-settings has keyword arguments of its own, so an unknown key must not be passed to it.
    if unknown := [f"unknown key {key}{nearest(key, known)}" for key in data if key not in known]:
        raise _refused(file, unknown)
    if unknown := [f"unknown variable {name}{nearest(name, _variables())}" for name in os.environ if _is_unknown(name)]:
        raise _refused(file, unknown)
    env_file = os.environ.get("BEDS_ENV_FILE", data.get("env_file", ""))
    if not isinstance(env_file, str):
        raise _refused(file, ["env_file: takes the path of a file, as text"])
    if "BEDS_ENV_FILE" in os.environ and env_file and not (file.parent / env_file).is_file():
        raise _refused(file, [f"BEDS_ENV_FILE: there is no file {env_file}"])
    ROOT.set(file.parent)
    try:
        settings = Settings(_env_file=file.parent / env_file if env_file else None, **data)
    except ValidationError as failed:
        raise _refused(file, _explain(failed)) from None
    except SettingsError as failed:
        section = re.search(r'field "(\w+)"', str(failed))
        variable = f"BEDS_{section[1].rstrip('_').upper()}" if section else "a BEDS_… variable"
        raise _refused(
            file, [f"{variable}: a whole section is written as JSON; a single key as {variable}__KEY"]
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(file, [f"env_file {env_file} cannot be read: {type(error).__name__}"]) from None
    settings._file = file
    return settings


def _variables() -> list[str]:
    return [CONFIG_VARIABLE, *(f"BEDS_{key.upper()}" for key in _keys_at(()))]


def _is_unknown(variable: str) -> bool:
    """Whether an environment variable has BEDS's prefix and names no section."""
    return variable.startswith("BEDS_") and variable.split("__")[0] not in _variables()


def no_file_at(file: Path | str) -> ConfigurationError:
    """The error for a named configuration file that does not exist."""
    return ConfigurationError(
        f"no configuration file at {file}", hint=f"give --config or {CONFIG_VARIABLE} the path of a beds.toml"
    )


def _read(file: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        if not must_exist:
            return {}
        raise no_file_at(file) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{file} cannot be read: {error}", detail={"file": str(file)}, hint="mend the file"
        ) from None


def _explain(failed: ValidationError) -> list[str]:
    """One line for each problem, with the key and without the value."""
    lines = []
    for problem in failed.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            *parents, key = problem["loc"]
            lines.append(f"unknown key {where}{nearest(str(key), _keys_at(parents))}")
        elif problem["type"] == "literal_error" and problem["loc"][-1] == "[key]":
            section, name = ".".join(map(str, problem["loc"][:-2])), str(problem["loc"][-2])
            known = re.findall(r"'([^']+)'", problem["ctx"]["expected"])
            what = "unknown broker" if section == "brokers" else f"unknown name in {section}"
            listed = f"; known: {', '.join(known)}" if len(known) < 4 else nearest(name, known)
            lines.append(f"{what} {name!r}{listed}")
        else:
            lines.append((f"{where}: " if where else "") + problem["msg"].removeprefix("Value error, "))
    return lines


def _refused(file: Path, problems: list[str]) -> ConfigurationError:
    return ConfigurationError(
        f"{file}: " + "; ".join(problems),
        detail={"file": str(file), "problems": problems},
        hint="compare with the beds.toml that `beds init` makes; the key may also come from a BEDS_… variable",
    )


def _keys_at(path: Iterable[Any]) -> list[str]:
    """The known keys of the section at `path`."""
    model: type[BaseModel] = Settings
    for step in path:
        found = _field(model, str(step))
        inner = _model_in(found.annotation) if found else None
        if inner:
            model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _field(model: type[BaseModel], key: str) -> FieldInfo | None:
    return next((f for name, f in model.model_fields.items() if key in (name, f.alias)), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
