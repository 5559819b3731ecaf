"""The workers' side: the Celery application, its tasks, its worker program and its result backend."""
