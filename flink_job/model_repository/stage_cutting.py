"""Cuts a model into so many stages when a job starts, as `anabranch plan --stages K` does for nodes that are alike.

The stages lie beside the model, in `stages-K/`, where every TaskManager can read them; they are cut once, and again
only if the model has become another file.
"""

from functools import partial
from pathlib import Path

import msgspec

from anabranch.flink_job.errors import ConfigError
from anabranch.schemas.stage_manifest import decode_plan


def cut(path: Path, sha256: str, stages: int) -> Path:
    """The manifest of a model's stages; they are made and proven if they are not there.

    Args:
        path: The model's file.
        sha256: Of it.

    Raises:
        ConfigError: The model cannot be cut into so many stages, or there is no place for them.
    """
    # Planning brings ONNX, which a job without such a model does not need.
    from anabranch.partition.errors import PartitionError  # noqa: PLC0415
    from anabranch.partition.graph.model_graph import load_graph  # noqa: PLC0415
    from anabranch.partition.planning.placement import Machine  # noqa: PLC0415
    from anabranch.partition.planning.planner import plan_timed  # noqa: PLC0415
    from anabranch.partition.profiling.profile import costs_of, profile, rows_of  # noqa: PLC0415
    from anabranch.partition.profiling.stage_timing import stage_times_ms  # noqa: PLC0415
    from anabranch.partition.stages.manifest import PLAN_FILE, write_placement  # noqa: PLC0415

    folder = path.parent / f"stages-{stages}"
    manifest = folder / PLAN_FILE
    if _is_of(manifest, sha256):
        return manifest
    try:
        graph = load_graph(path)
        known = profile(graph, rows_of(graph, 1))
        time_stages = partial(stage_times_ms, graph, rows=known.rows)
        _, placement = plan_timed(costs_of(graph, known), [Machine(name="node", count=stages)], stages, time_stages)
        write_placement(graph, placement, folder, rows=known.rows)
    except PartitionError as error:
        raise ConfigError(f"{path} cannot be cut into {stages} stages: {error}") from None
    return manifest


def _is_of(manifest: Path, sha256: str) -> bool:
    try:
        return decode_plan(manifest.read_bytes()).model_sha256 == sha256
    except (OSError, msgspec.MsgspecError):
        return False
