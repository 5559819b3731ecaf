"""Every Celery setting of this node, each with its reason. Values come from beds.toml and the topology.

Pool sizes, prefetch and time limits are not here, since they belong to a queue. The worker reads them from [brokers] of
beds.toml for its queues (beds/worker/program.py).
"""

from beds.config import load_settings
from beds.config.hosts import each_host
from beds.transport.connection import tls_options
from beds.transport.topology import Topology
from beds.wire.routes import DEAD, LATER, ROUTES

_settings = load_settings()
_topology = Topology.from_settings(_settings.amqp)

# --- Where -----------------------------------------------------------------------------------------------------------
# One host of a cluster: Celery would set up its delayed delivery over each of them in turn, and wait for those that are
# down. The app's connections try all hosts (beds/worker/app.py).
broker_url = each_host(_settings.amqp.broker_url)[0]
# TLS for amqps, with the server's name checked, which py-amqp does not do by itself.
broker_use_ssl = tls_options(_settings.amqp, _settings.amqp.broker_url)
# Not the shorter one of several hosts: a worker's own process sends none while it starts.
broker_heartbeat = _settings.amqp.heartbeat or 10
broker_connection_timeout = _settings.amqp.connect_timeout
# A worker reconnects after any restart of RabbitMQ, however long it takes.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# A worker's own process publishes only monitoring events. Waiting for a confirm of each took 40 % of its time.
# Events that must not be lost go through the client, which waits for every confirm.
broker_transport_options = {"confirm_publish": False}

# --- What goes over the wire -----------------------------------------------------------------------------------------
# JSON only, since a pickle can run code.
accept_content = ["json"]
task_serializer = "json"
result_serializer = "json"
enable_utc = True
timezone = "UTC"

# --- Routing: by the name of a queue, never at call time -------------------------------------------------------------
# A retry loses an exchange and key given at call time. It then runs on another queue's worker, since Celery prefers the
# default queue's binding.
# Nothing consumes beds.later: its messages return by themselves.
task_queues = [queue.to_kombu() for queue in _topology.queues if queue.name != LATER]
task_routes = {route.task: {"queue": route.queue.name} for route in ROUTES.values()}
# A task without a route goes to the dead-letter queue, whose consumer executes no task.
task_default_queue = DEAD
task_default_exchange = DEAD
task_default_exchange_type = "topic"
task_default_routing_key = DEAD
# A typo in -Q is an error, not a new queue to which no event is routed.
task_create_missing_queues = False
# Reads the declared queue arguments, since quorum queues do not support global prefetch.
worker_detect_quorum_queues = True
broker_native_delayed_delivery_queue_type = _settings.amqp.queue_type

# --- Nothing is lost -------------------------------------------------------------------------------------------------
# Acknowledge after the effect, so that RabbitMQ redelivers a killed worker's event.
task_acks_late = True
task_reject_on_worker_lost = True
# A typed error is a reply, so the event is acknowledged.
task_acks_on_failure = True
# The hard limit kills the slot. RabbitMQ redelivers the event and counts it; the ledger prevents a second effect.
task_acks_on_timeout = False
# After a lost connection RabbitMQ redelivers the event; the first run must not continue beside the second.
worker_cancel_long_running_tasks_on_connection_loss = True
# SIGTERM waits until running events are finished. A cold shutdown (SIGQUIT) gives them this many seconds.
worker_soft_shutdown_timeout = 10.0

# --- Results ---------------------------------------------------------------------------------------------------------
result_backend = "beds.worker.backend:ReplyBackend"
# For Flower, which shows task events and their results.
result_extended = True
worker_send_task_events = True

# --- The process -----------------------------------------------------------------------------------------------------
imports = (
    "beds.worker.crud",
    "beds.worker.calgon",
    "beds.worker.operator",
    "beds.worker.admin",
    "beds.worker.jobs",
    "beds.worker.probe",
)
# Celery must not take over the root logger of an application that embeds a worker.
worker_hijack_root_logger = False
worker_prefetch_multiplier = 1
# The caller's exception has no traceback of the worker. Logs and monitors show only the names that the client puts into
# an event's repr headers, never values.
task_remote_tracebacks = False
