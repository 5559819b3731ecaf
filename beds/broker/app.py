"""The Celery application: `celery -A beds …` finds it as `beds.app`."""

from __future__ import annotations

import importlib.util
from functools import cached_property
from typing import Any

from celery import Celery

from beds.config import Settings, load_settings
from beds.services.factory import AdapterFactory
from beds.templates.registry import TemplateRegistry


class BedsApp(Celery):
    """Celery with what the tasks need: the node's settings, its templates, its adapters."""

    @cached_property
    def settings(self) -> Settings:
        return load_settings()

    @cached_property
    def registry(self) -> TemplateRegistry:
        return TemplateRegistry.from_folder(self.settings.schema_path)

    @cached_property
    def factory(self) -> AdapterFactory:
        return AdapterFactory(self.settings, self.registry)

    @cached_property
    def Worker(self) -> Any:
        """The worker that takes its size from beds.toml."""
        return self.subclass_with_self("beds.broker.worker:BedsWorker")


def _celery_settings(settings: Settings) -> Any:
    """celeryconfig.py beside beds.toml; in a client-only environment, which has none, what looking at tasks needs."""
    file = settings.root / "celeryconfig.py"
    spec = importlib.util.spec_from_file_location("celeryconfig", file)
    if not file.is_file() or spec is None or spec.loader is None:
        return {
            "broker_url": settings.amqp.client_url,
            "result_backend": "beds.broker.backend:ReplyBackend",
            "task_serializer": "json",
            "accept_content": ["json"],
        }
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


app = BedsApp("beds")
app.config_from_object(_celery_settings(app.settings))
