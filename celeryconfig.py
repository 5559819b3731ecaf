"""Every Celery setting of this node, each with its reason. Values come from beds.toml and the topology.

Pool sizes, prefetch and time limits are not here: they belong to a queue, and the worker takes them from [brokers] of
beds.toml when it knows its queues (beds/broker/worker.py).
"""

from beds.config import load_settings
from beds.domain.event import CALGON, CALGON_VERBS, RECORD_TASKS, Operation, Store, probe_for, queue_for, task_for
from beds.transport.connection import tls_options
from beds.transport.topology import DEAD, EVENT_QUEUES, Topology, record_queue

_settings = load_settings()
_topology = Topology.from_settings(_settings.amqp)

# --- Where -----------------------------------------------------------------------------------------------------------
broker_url = _settings.amqp.broker_url
# TLS for amqps, with the server's name checked, which py-amqp does not do by itself.
broker_use_ssl = tls_options(_settings.amqp, broker_url)
broker_heartbeat = _settings.amqp.heartbeat
broker_connection_timeout = _settings.amqp.connect_timeout
# A worker outlives any restart of RabbitMQ.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# What a worker's own process publishes is monitoring events: to wait for a confirm of each took 40 % of its time.
# Events that must not be lost go through the client, which confirms all of them.
broker_transport_options = {"confirm_publish": False}

# --- What goes over the wire -----------------------------------------------------------------------------------------
# JSON only: a pickle is a program.
accept_content = ["json"]
task_serializer = "json"
result_serializer = "json"
enable_utc = True
timezone = "UTC"

# --- Routing: by the name of a queue, never at call time -------------------------------------------------------------
# A call-time exchange and key is lost on a retry, which then runs on another queue's worker (celery prefers the default
# queue's binding).
task_queues = [queue.to_kombu() for queue in _topology.queues]
task_routes = (
    {task_for(store, operation): {"queue": queue_for(store, operation)} for store in Store for operation in Operation}
    | {f"{CALGON}.{verb}": {"queue": CALGON} for verb in CALGON_VERBS}
    | {task: {"queue": record_queue(kind)} for kind, task in RECORD_TASKS.items()}
    | {probe_for(queue): {"queue": queue} for queue in EVENT_QUEUES}
)
# Whatever has no route ends where no task is executed.
task_default_queue = DEAD
task_default_exchange = DEAD
task_default_exchange_type = "topic"
task_default_routing_key = DEAD
# A typo in -Q is an error, not a new queue that nobody fills.
task_create_missing_queues = False
# Reads the declared queue arguments: quorum queues know no global prefetch.
worker_detect_quorum_queues = True
broker_native_delayed_delivery_queue_type = _settings.amqp.queue_type

# --- Nothing is lost -------------------------------------------------------------------------------------------------
# Acknowledge after the effect, so that a killed worker's event comes back.
task_acks_late = True
task_reject_on_worker_lost = True
# A typed error is an answer: the event is done.
task_acks_on_failure = True
# The hard limit kills the slot; the event comes back, is counted, and has its effect once (the ledger).
task_acks_on_timeout = False
# After a lost connection RabbitMQ delivers again; the first run must not go on beside the second.
worker_cancel_long_running_tasks_on_connection_loss = True
# SIGTERM lets what runs come to its end.
worker_soft_shutdown_timeout = 10.0

# --- Results ---------------------------------------------------------------------------------------------------------
result_backend = "beds.broker.backend:ReplyBackend"
# What Flower shows; task events are needed for it.
result_extended = True
worker_send_task_events = True

# --- The process -----------------------------------------------------------------------------------------------------
imports = ("beds.broker.crud", "beds.broker.calgon", "beds.broker.admin", "beds.broker.probe")
# Celery must not take over the root logger of an application that embeds a worker.
worker_hijack_root_logger = False
worker_prefetch_multiplier = 1
# How long events and replies may be shown in logs and monitors is decided by the client (names, never values).
task_remote_tracebacks = False
