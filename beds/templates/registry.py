"""All templates of a node, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from beds.errors import BedsError, ConfigurationError, TemplateError, UnknownTemplate, nearest
from beds.templates.rules import JobRule, JobRules, load_rule
from beds.templates.template import Template, load_template

SYSTEM = Path(__file__).parent.parent / "system"
"""BEDS's own schema and templates, in the same layout as the application's `schema/`."""


class TemplateRegistry(Mapping[str, Template]):
    """Templates by name. Made once per process; a new template needs a restart of the nodes that use it."""

    def __init__(self) -> None:
        self._templates: dict[str, Template] = {}
        self.broken: list[BedsError] = []
        """The errors of files that are no valid templates or rules; each names its file. Empty if it is strict."""
        self.jobs = JobRules()
        """The rules of jobs."""

    def _add(self, template: Template) -> None:
        twin = self._templates.setdefault(template.name, template)
        if twin is not template:
            raise TemplateError(
                f"two templates are named {template.name}: {twin.file} and {template.file}", hint="rename one"
            )

    @classmethod
    def from_folder(cls, schema_path: Path, *, strict: bool = True) -> TemplateRegistry:
        """Load `<schema_path>/templates/*.toml` and `jobs/*.toml`, and the system templates that BEDS ships.

        Args:
            schema_path: the folder `schema/`.
            strict: whether an invalid file is an error; otherwise its error goes to `broken`.

        Raises:
            ConfigurationError: the folder does not exist.
            TemplateError: a file is invalid.
        """
        folder = schema_path / "templates"
        if not folder.is_dir():
            raise ConfigurationError(
                f"no templates: {folder} does not exist",
                hint="run this beside beds.toml, or set [schema] path there to the folder that holds templates/",
            )
        own = sorted((SYSTEM / "templates").glob("*.toml"))
        files = sorted(file for file in folder.glob("*.toml") if file.is_file())  # reading a pipe would never end
        found = cls()
        for file in (*own, *files):
            try:
                found._add(load_template(file, system=file in own))
            except BedsError as error:
                if strict:
                    raise
                found.broken.append(error)
        found.jobs = found._load_rules(schema_path / "jobs", strict=strict)
        return found

    def _load_rules(self, folder: Path, *, strict: bool) -> JobRules:
        rules: dict[str, JobRule] = {}
        broken: dict[str, BedsError] = {}
        for file in sorted(file for file in folder.glob("*.toml") if file.is_file()):
            try:
                rule = load_rule(file)
                rule.check(self)
                rules[rule.name] = rule
            except BedsError as error:
                if strict:
                    raise
                self.broken.append(error)
                broken[file.stem] = error
        found = JobRules(rules)
        found.broken |= broken
        return found

    def __getitem__(self, name: str) -> Template:
        try:
            return self._templates[name]
        except (KeyError, TypeError):  # TypeError: not hashable
            raise UnknownTemplate(
                f"no template {name!r}{nearest(str(name), self._templates)}",
                detail={"template": str(name), "known": sorted(self._templates)},
                hint=f"it may stand in a file that cannot be read: {self.broken[0].message}" if self.broken else None,
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._templates)

    def __len__(self) -> int:
        return len(self._templates)

    def __contains__(self, name: object) -> bool:
        return name in self._templates
