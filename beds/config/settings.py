"""beds.toml, the environment and the env_file become one frozen `Settings`.

Order, strongest first: arguments, `BEDS_…__…` environment variables, the `env_file` named in beds.toml, beds.toml.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from beds.config.sections import (
    BROKER_NAMES,
    Amqp,
    Broker,
    BrokerName,
    Calgon,
    Databases,
    Logging,
    Node,
    Retry,
    Schema,
    Services,
)
from beds.errors import ConfigurationError, nearest

CONFIG_VARIABLE = "BEDS_CONFIG"
"""Environment variable that names the configuration file; `beds.toml` in the working folder when unset."""


class Settings(BaseSettings):
    """Everything a node knows about itself. Make one with `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix="BEDS_",
        env_prefix_target="all",  # `schema` is an alias, and takes the prefix too
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    env_file: Path | None = None
    """A file of BEDS_… variables with what does not belong under version control, relative to beds.toml."""
    root: Path = Field(default_factory=Path.cwd, exclude=True)
    """The folder of beds.toml; relative paths start here."""
    node: Node = Node()
    amqp: Amqp = Amqp()
    services: Services = Services()
    brokers: dict[BrokerName, Broker] = {}
    databases: Databases = Databases()
    retry: Retry = Retry()
    calgon: Calgon = Calgon()
    logging: Logging = Logging()
    # The TOML key is `schema`, a name that pydantic's own classes use.
    schema_: Schema = Field(default=Schema(), alias="schema")

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
        return merged

    def broker(self, name: str) -> Broker:
        """The pool settings of one broker type; the defaults where beds.toml is silent."""
        return self.brokers.get(name, Broker())  # type: ignore[call-overload,no-any-return]

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
        # load_settings passes the file as arguments, so these rank lowest here.
        return env_settings, dotenv_settings, init_settings


def load_settings(path: Path | str | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the configuration of this node.

    Args:
        path: the file; else `$BEDS_CONFIG`; else `beds.toml` in the working folder, which may be missing.
        environ: only for reading `$BEDS_CONFIG`; the process environment when absent.

    Raises:
        ConfigurationError: the file cannot be read, or a key or value is wrong; names the file, the key and the remedy.
    """
    named = path or (os.environ if environ is None else environ).get(CONFIG_VARIABLE)
    file = Path(named or "beds.toml").resolve()
    data = _read(file, must_exist=named is not None)
    env_file = data.get("env_file")
    try:
        return Settings(_env_file=file.parent / env_file if env_file else None, **{**data, "root": file.parent})
    except ValidationError as failed:
        raise _explain(failed, file) from None


def _read(file: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not must_exist:
            return {}
        raise ConfigurationError(
            f"no configuration file at {file}", hint=f"give --config or {CONFIG_VARIABLE} the path of a beds.toml"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(
            f"{file} cannot be read: {error}", detail={"file": str(file)}, hint="mend the file"
        ) from None


def _explain(failed: ValidationError, file: Path) -> ConfigurationError:
    lines = []
    for problem in failed.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            *parents, key = problem["loc"]
            lines.append(f"unknown key {where}{nearest(str(key), _keys_at(parents))}")
        elif problem["type"] == "literal_error" and problem["loc"][-1] == "[key]":
            name = str(problem["loc"][-2])
            lines.append(f"unknown broker {name!r}{nearest(name, BROKER_NAMES)}")
        else:
            lines.append(f"{where}: {problem['msg']}")
    return ConfigurationError(
        f"{file}: " + "; ".join(lines),
        detail={"file": str(file), "problems": lines},
        hint="see docs/reference/configuration.md; the key may also come from a BEDS_… variable",
    )


def _keys_at(path: Iterable[Any]) -> list[str]:
    """The known keys of the section at `path`."""
    model: type[BaseModel] = Settings
    for step in path:
        found = _field(model, str(step))
        inner = _model_in(found.annotation) if found else None
        if inner:
            model = inner
    return [field.alias or name for name, field in model.model_fields.items() if name != "root"]


def _field(model: type[BaseModel], key: str) -> FieldInfo | None:
    return next((f for name, f in model.model_fields.items() if key in (name, f.alias)), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
