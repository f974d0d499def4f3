from __future__ import annotations

from typing import Any

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from bezoar.integrations.flower import InProcessGrid, answer_roll_call
from bezoar.integrations.flower.roster import ACTION, UNKNOWN, Roster


def says(what: Any) -> ClientApp:
    app = ClientApp()

    @app.query(ACTION)
    def answer(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"partition-id": what})}), reply_to=message)

    return app


def test_clients_are_numbered_by_partition_and_asked_once() -> None:
    grid = InProcessGrid(answer_roll_call(ClientApp()), 4)
    roster = Roster()
    nodes = grid.get_node_ids()
    roster.meet(grid, nodes[:2])
    roster.meet(grid, nodes)
    assert [roster.numbers[node] for node in nodes] == [0, 1, 2, 3]
    assert [grid.nodes[node].calls for node in nodes] == [1, 1, 1, 1]
    assert roster.nodes([3, 0]) == [nodes[3], nodes[0]]


def test_nobody_takes_the_number_of_one_who_is_there() -> None:
    liar, honest = says(0), answer_roll_call(ClientApp())
    grid = InProcessGrid(lambda partition: liar if partition in (2, 3) else honest, 4)
    roster = Roster()
    first = grid.get_node_ids()[:2]
    roster.meet(grid, first)
    roster.meet(grid, grid.get_node_ids())
    assert [roster.numbers[node] for node in first] == [0, 1]
    assert sorted(roster.numbers.values()) == [0, 1, UNKNOWN, UNKNOWN + 1]


def test_who_comes_back_as_another_node_is_the_same_client() -> None:
    app = answer_roll_call(ClientApp())
    before, after = InProcessGrid(app, 3, seed=0), InProcessGrid(app, 3, seed=1)
    roster = Roster()
    roster.meet(before, before.get_node_ids())
    roster.meet(after, after.get_node_ids())
    assert [roster.numbers[node] for node in after.get_node_ids()] == [0, 1, 2]
    assert roster.nodes([0, 1, 2]) == after.get_node_ids()


def test_numbers_that_are_none_count_as_unknown() -> None:
    for what in (-1, 2**40, 1.5, [0]):
        grid = InProcessGrid(says(what), 2)
        roster = Roster()
        roster.meet(grid, grid.get_node_ids())
        assert sorted(roster.numbers.values()) == [UNKNOWN, UNKNOWN + 1]


def test_nobody_is_asked_where_that_is_turned_off() -> None:
    grid = InProcessGrid(answer_roll_call(ClientApp()), 2)
    roster = Roster(ask=False)
    roster.meet(grid, grid.get_node_ids())
    assert all(node.calls == 0 for node in grid.nodes.values())
    assert sorted(roster.numbers.values()) == [UNKNOWN, UNKNOWN + 1]
