"""tree_of: new fields by key, with their numbers."""

from anabranch.operators.core.flows.event_tree import NewField, tree_of


def test_tree_of_paths_numbers_their_fields() -> None:
    tree = tree_of([(("a", "b"), "int"), (("c",), "long"), (("a", "d"), "text")])
    assert tree == {"a": {"b": NewField(0, "int"), "d": NewField(2, "text")}, "c": NewField(1, "long")}
