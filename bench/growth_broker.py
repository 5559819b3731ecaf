"""The RabbitMQ systems that bench.growth compares: their addresses, their processes, and what they have done."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import psutil
from pydantic import SecretStr

from beds.config import Settings
from beds.stack.plan import VHOST as CLUSTER_VHOST
from beds.stack.rabbitmq import RabbitMQ
from bench.amqp_peer import connect
from bench.rabbitmq_cluster import Member


@dataclass(frozen=True)
class Broker:
    """One RabbitMQ system.

    Args:
        settings: of a client.
        members: its nodes.
        vhost: the one of BEDS.
        env: of a worker.
    """

    settings: Settings
    members: Sequence[RabbitMQ]
    vhost: str
    env: Mapping[str, str]

    @property
    def size(self) -> int:
        return len(self.members)

    def cpu_groups(self) -> dict[str, Sequence[psutil.Process]]:
        return {f"rabbitmq{n}": member.daemon.family() for n, member in enumerate(self.members)}

    def consumers(self, queue: str) -> int:
        member = self.members[0]
        url = f"{member.plan.amqp_url('worker').rpartition('/')[0]}/{self.vhost}"
        with contextlib.closing(connect(url)) as connection:
            return int(connection.channel().queue_declare(queue, passive=True).consumer_count)

    def work(self, queue: str) -> list[Work]:
        """What each member has done since its start."""
        found = {}
        for name, *numbers in _WORK.findall(self.members[0].control("eval", _PROGRAM % (self.vhost, queue))):
            found[name] = Work(*map(int, numbers))
        return [found[member.environment["RABBITMQ_NODENAME"]] for member in self.members]


@dataclass(frozen=True)
class Work:
    """What a RabbitMQ node has done since its start.

    Args:
        every, queue, log: reductions, which are Erlang's measure of work: of all processes, of the queue's member here,
            and of the log that all quorum queues of the node share.
        octets: bytes to and from clients and other nodes, over the connections that are open.
    """

    every: int
    queue: int
    log: int
    octets: int

    def since(self, before: Work) -> Work:
        return Work(
            self.every - before.every, self.queue - before.queue, self.log - before.log, self.octets - before.octets
        )

    @property
    def serial(self) -> float:
        """The share of the busier of the two processes."""
        return max(self.queue, self.log) / self.every


_PROGRAM = """
{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"%s">>, queue, <<"%s">>)),
{Name, _} = amqqueue:get_pid(Q),
Work = fun() ->
    Of = fun(P) -> case whereis(P) of undefined -> 0; Pid -> element(2, process_info(Pid, reductions)) end end,
    Ports = [P || P <- erlang:ports(), erlang:port_info(P, name) =:= {name, "tcp_inet"}],
    Octets = [N || P <- Ports, {ok, Counts} <- [inet:getstat(P, [recv_oct, send_oct])], {_, N} <- Counts],
    {node(), element(1, erlang:statistics(reductions)), Of(Name), Of(ra_log_wal), lists:sum(Octets)}
end,
[rpc:call(Node, erlang, apply, [Work, []]) || Node <- [node() | nodes()], Node =:= node() orelse
    lists:member(Node, rabbit_nodes:all_running())].
"""
"""Called with a vhost and a quorum queue. A helper of rabbitmqctl is connected meanwhile, and is no member."""
_WORK = re.compile(r"(\w+@\w+)'?,\s*(\d+),\s*(\d+),\s*(\d+),\s*(\d+)")


def of_cluster(settings: Settings, members: Sequence[Member]) -> Broker:
    """The cluster, whose members are all in the addresses of clients and workers."""
    ports = ",127.0.0.1:".join(str(member.plan.amqp_port) for member in members)
    passwords = members[0].plan.passwords
    app, own = (
        f"amqp://beds_{user}:{quote(passwords[f'amqp_{user}'])}@127.0.0.1:{ports}/{CLUSTER_VHOST}"
        for user in ("app", "worker")
    )
    amqp = settings.amqp.model_copy(update={"url": SecretStr(app), "worker_url": SecretStr(own)})
    env = {"BEDS_AMQP__URL": app, "BEDS_AMQP__WORKER_URL": own}
    return Broker(settings.model_copy(update={"amqp": amqp}), members, CLUSTER_VHOST, env)
