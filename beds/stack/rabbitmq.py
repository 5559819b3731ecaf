"""RabbitMQ: creates, starts and checks the local server."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import urllib.request
from collections.abc import Sequence
from typing import Any

from pydantic import SecretStr

from beds.config.sections import Amqp
from beds.errors import StackError
from beds.node.daemon import Daemon, accepts
from beds.stack.plan import VHOST, Plan
from beds.stack.server import Server
from beds.transport.rights import ADMINISTRATOR, User, definitions, users_of

TOOL_SECONDS = 180.0
"""For a command. A cluster that has just started elects leaders meanwhile."""


class RabbitMQ(Server):
    """A node with its own name, cookie and epmd. A definitions file creates the users at the first boot."""

    name = "rabbitmq"
    package = "rabbitmq-server (Debian)"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.epmd = Daemon("epmd", self.daemon.folder)

    @property
    def ports(self) -> dict[str, int]:
        plan = self.plan
        return {
            "RabbitMQ": plan.amqp_port,
            "RabbitMQ management": plan.management_port,
            "RabbitMQ distribution": plan.dist_port,
            **({} if self.epmd.process() else {"epmd": plan.epmd_port}),
        }

    @property
    def node_name(self) -> str:
        return f"beds{self.plan.amqp_port}@localhost"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make rabbitmq-server and rabbitmqctl use this node and no other."""
        folder = self.folder
        return {
            "HOME": str(folder),  # the Erlang cookie lies here
            "RABBITMQ_NODENAME": self.node_name,
            "RABBITMQ_BASE": str(folder),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_DIST_PORT": str(self.plan.dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CTL_DIST_PORT_MIN": str(self.plan.dist_port + 1),
            "RABBITMQ_CTL_DIST_PORT_MAX": str(self.plan.dist_port + 20),
            "ERL_EPMD_PORT": str(self.plan.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "LANG": "C.UTF-8",
        }

    def make(self) -> None:
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (self.folder / "rabbitmq-env.conf").touch()
        (self.folder / "definitions.json").write_text(json.dumps(self._definitions()))
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.plan.amqp_port}\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self.plan.management_port}\n"
            f"load_definitions = {self.folder / 'definitions.json'}\n"
            "disk_free_limit.absolute = 200MB\nvm_memory_high_watermark.absolute = 2GB\n"
            "cluster_partition_handling = pause_minority\nqueue_leader_locator = balanced\n"
            "management.rates_mode = basic\ncollect_statistics_interval = 2000\nlog.console.level = warning\n"
            + "".join(f"{line}\n" for line in self.more)
        )

    def _definitions(self) -> dict[str, object]:
        url = {role: SecretStr(self.plan.amqp_url(role)) for role in ("app", "worker", "operator", "http")}
        users = users_of(
            Amqp(url=url["app"], worker_url=url["worker"], operator_url=url["operator"], http_url=url["http"])
        )
        return definitions(VHOST, [*users, User.of(self.plan.amqp_url("admin"), ADMINISTRATOR, "administrator")])

    def start_epmd(self) -> None:
        """Start Erlang's name server, which all nodes of this stack share."""
        if self.epmd.process() is None:
            epmd = self.program("epmd")
            self.epmd.start([epmd, "-port", str(self.plan.epmd_port), "-address", "127.0.0.1"])
            self.epmd.wait_until(lambda: accepts(self.plan.epmd_port), 10)

    def start(self) -> None:
        self.start_epmd()
        # Debian's wrapper on the PATH would change to the user rabbitmq; the script behind it does not.
        server = self.program("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")
        self.daemon.start([server], env=self.environment)

    def is_ready(self) -> bool:
        try:
            self.management(f"health/checks/port-listener/{self.plan.amqp_port}")
        except (OSError, ValueError):  # URLError is an OSError
            return False
        return True

    def management(self, path: str) -> Any:
        """The reply of RabbitMQ's management API to GET /api/<path>. Raises OSError."""
        user = f"beds_admin:{self.plan.passwords['amqp_admin']}"
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.plan.management_port}/api/{path}",
            headers={"Authorization": "Basic " + base64.b64encode(user.encode()).decode()},
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)

    def provision(self) -> None:
        """Remove the definitions file: the first boot imported it, and each further boot would undo later changes."""
        conf = self.folder / "rabbitmq.conf"
        conf.write_text("".join(li for li in conf.read_text().splitlines(True) if "load_definitions" not in li))
        (self.folder / "definitions.json").unlink()

    def define_users(self) -> None:
        """Import all users and rights into a RabbitMQ that an earlier version created. Raises StackError."""
        file = self.folder / "definitions.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(self._definitions()))
        try:
            self.control("import_definitions", str(file))
        finally:
            file.unlink()

    def down(self) -> bool:
        ran = super().down()
        if not self.plan.is_cluster:
            self.epmd.stop()
        return ran

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl` on this node. Raises StackError."""
        return self._tool("rabbitmqctl", arguments)

    def queues_tool(self, *arguments: str) -> str:
        """Run `rabbitmq-queues` on this node. Raises StackError."""
        return self._tool("rabbitmq-queues", arguments)

    def _tool(self, name: str, arguments: Sequence[str]) -> str:
        program = self.program(f"/usr/lib/rabbitmq/bin/{name}", name)
        try:
            done = subprocess.run(
                [program, *arguments],
                env={**os.environ, **self.environment},
                capture_output=True,
                text=True,
                timeout=TOOL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise StackError(
                f"{name} {arguments[0]} is not done after {TOOL_SECONDS:.0f} s", hint=f"see {self.daemon.log}"
            ) from None
        if done.returncode:
            raise StackError(f"{name} {arguments[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout
