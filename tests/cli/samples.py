"""A small valid file of every format: one deployment, as every engine would have recorded it.

Four steps of two MoE layers (decoder layers 3 and 4) with four experts; the maps hold them in six
slots on two ranks.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import equipoise as eq
from equipoise.engines._shared import torch_archive
from equipoise.engines.formats import MapContext
from equipoise.trace import TokenIds

LAYERS = (3, 4)
NUM_DECODER_LAYERS = 5
SLOTS = np.array([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]])
CHOICES = np.random.default_rng(7).random((4, 2, 6, 2, 4)).argsort(axis=-1)[..., :2]
"""What every token chose: (steps, source ranks, tokens, layers, choices), the choices different."""

_PLACEMENT = eq.Placement(SLOTS, num_ranks=2, num_experts=4, layer_ids=LAYERS)


def _count(ids: np.ndarray) -> np.ndarray:
    """Choices ``(..., tokens, L, K)`` counted by expert, ``(..., L, E)``."""
    return (ids[..., None] == np.arange(4)).sum(axis=(-4, -2))


SOURCE_COUNTS = _count(CHOICES)
COUNTS = SOURCE_COUNTS.sum(axis=1)


def trace() -> eq.Trace:
    """The recording with all a trace can hold."""
    return eq.Trace(
        counts=COUNTS,
        layer_ids=LAYERS,
        step_ids=np.array([10, 11, 12, 13]),
        top_k=2,
        source_counts=SOURCE_COUNTS,
        tokens=TokenIds(CHOICES.reshape(-1, 2, 2), np.arange(5) * 2 * CHOICES.shape[2]),
        labels={"domain": np.array(["code", "code", "text", "text"])},
    )


def _by_key(values: np.ndarray) -> dict[str, np.ndarray]:
    """One rank's ``values[step][layer]`` under TensorRT-LLM's keys."""
    return {
        f"{10 + t}_{layer}": np.ascontiguousarray(values[t][i])
        for t in range(4)
        for i, layer in enumerate(LAYERS)
    }


def _dump(path: Path) -> None:
    """TensorRT-LLM's vectors of counts, with all that later layouts write besides them."""
    eq.write_trace(trace(), path, format="trtllm")
    for rank in range(2):
        chosen = _by_key(CHOICES[:, rank].swapaxes(1, 2))
        save_file(chosen, path / f"token_selected_experts_rank{rank}.safetensors")
        tokens = json.dumps(dict.fromkeys(chosen, CHOICES.shape[2]))
        (path / f"rank{rank}_numtokens.json").write_text(tokens)


def _raw(path: Path) -> None:
    path.mkdir()
    (path / "meta_info.json").write_text('{"num_experts": 4, "num_experts_per_token": 2}')
    for rank in range(2):
        save_file(_by_key(CHOICES[:, rank].swapaxes(1, 2)), path / f"rank{rank}_raw.safetensors")


def _pickles(path: Path) -> None:
    import torch

    path.mkdir()
    for rank in range(2):
        vectors = {
            tuple(map(int, key.split("_"))): torch.from_numpy(counts)
            for key, counts in _by_key(SOURCE_COUNTS[:, rank]).items()
        }
        (path / f"rank_{rank}.pkl").write_bytes(pickle.dumps(vectors))


def _stat(path: Path) -> None:
    counts = np.zeros((4, NUM_DECODER_LAYERS, 4), dtype=np.int32)
    counts[:, LAYERS] = COUNTS
    if path.suffix == ".json":
        path.write_text(json.dumps({"rank": 0, "logical_count": counts.tolist()}))
    else:
        torch_archive.save(path, {"rank": 0, "logical_count": counts})


def _passes(path: Path) -> None:
    """SGLang's records of single passes, with the tokens of each: a file a rank."""
    path.mkdir()
    slots = np.tile(np.arange(6) % 4, (NUM_DECODER_LAYERS, 1))
    for rank in range(2):
        records = []
        for t in range(4):
            ids = np.full((NUM_DECODER_LAYERS, CHOICES.shape[2], 8), -1, dtype=np.int32)
            ids[LAYERS, :, : CHOICES.shape[-1]] = CHOICES[t, rank].swapaxes(0, 1)
            counts = (ids[..., None] == np.arange(6)).sum(axis=(1, 2)).astype(np.int32)
            record = {"forward_pass_id": 10 + t, "rank": rank, "global_physical_count": counts}
            records.append(record | {"topk_ids_of_layer": ids, "forward_mode": 1 + t % 2})
        root = {"records": records, "last_physical_to_logical_map": slots}
        torch_archive.save(path / f"expert_distribution_recorder_1700000000.5_{rank}.pt", root)


def _load_stats(path: Path) -> None:
    meta = {"record_type": "eplb_load_meta", "version": 1, "num_ranks": 2, "num_layers": 2}
    records: list[dict[str, Any]] = [meta | {"num_redundant_experts": 2}]
    for t in range(4):
        load = np.pad(COUNTS[t], ((0, 0), (0, 2)))  # on the first copy of every expert
        stats = {"record_type": "eplb_load_stats", "version": 1, "step": 10 + t}
        identity = [[0, 1, 2, 3, 0, 1]] * 2
        records.append(stats | {"expert_load": load.tolist(), "p2l_map": identity})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _history(path: Path) -> None:
    steps = [{"logical_expert_load": counts.tolist()} for counts in COUNTS]
    path.write_text(json.dumps({"load_history": steps}))


def _hotness(path: Path) -> None:
    counts = COUNTS.sum(axis=0).tolist()
    path.write_text(json.dumps({str(i): dict(enumerate(row)) for i, row in enumerate(counts)}))


def _load(path: Path) -> None:
    torch_archive.save(path, COUNTS.sum(axis=0))


def _counts_archive(path: Path) -> None:
    np.savez(path, counts=COUNTS, layers=np.array(LAYERS), top_k=np.array(2))


def _choices_archive(path: Path) -> None:
    np.savez_compressed(
        path,
        topk_ids=CHOICES.reshape(-1, 2, CHOICES.shape[-1]),
        seq_lens=np.full(4, 2 * CHOICES.shape[2]),
        domain=np.array(["code", "code", "text", "text"]),
    )


def _answers(path: Path) -> None:
    """Completions of a vLLM server, a request a step; layers 0 to 2 are dense."""
    choices = []
    for ids in CHOICES.reshape(4, -1, 2, CHOICES.shape[-1]):
        routed = np.zeros((len(ids), NUM_DECODER_LAYERS, CHOICES.shape[-1]), np.uint8)
        routed[:, LAYERS] = ids
        file = io.BytesIO()
        np.save(file, routed)
        choices.append({"routed_experts": base64.b64encode(file.getvalue()).decode()})
    path.write_text(json.dumps({"choices": choices}))


def _requests() -> np.ndarray:
    """The choices of a request a step, with rows for the dense layers: (4, tokens, 5, choices)."""
    ids = CHOICES.reshape(4, -1, 2, CHOICES.shape[-1])
    routed = np.zeros((4, ids.shape[1], NUM_DECODER_LAYERS, ids.shape[-1]), np.int32)
    routed[:, :, LAYERS] = ids
    return routed


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _sglang_answers(path: Path) -> None:
    """What SGLang answers to /generate: numbers without their shape."""
    lines = []
    for t, routed in enumerate(_requests()):
        meta = {"id": f"r{t}", "prompt_tokens": 5, "completion_tokens": len(routed) - 4}
        lines.append(
            {"text": "", "meta_info": meta | {"routed_experts": _base64(routed.tobytes())}}
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _stream(path: Path) -> None:
    """The chunks of vLLM's streams, as they go over the wire."""
    lines = []
    for t, routed in enumerate(_requests().astype(np.uint8)):
        file = io.BytesIO()
        np.save(file, routed)
        new = len(routed) - 4
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "prompt_token_ids": [1] * 5, "token_ids": [2]}]},
            {"choices": [{"index": 0, "token_ids": [3] * (new - 1)}]},
            {"choices": [{"index": 0, "routed_experts": _base64(file.getvalue())}]},
        ]
        lines += [f"data: {json.dumps({'id': f'c{t}', **chunk})}\n\n" for chunk in chunks]
    path.write_text("".join([*lines, "data: [DONE]\n\n"]))


def _tensors(path: Path) -> None:
    """TensorRT-LLM's answers, tensors written as lists: MoE layers only."""
    outputs = [
        {"token_ids": [1] * 4, "additional_generation_outputs": {"routed_experts": [ids.tolist()]}}
        for ids in _requests()[:, :, LAYERS]
    ]
    answers = [
        {"request_id": t, "prompt_token_ids": [0] * (CHOICES.shape[2] * 2 - 3), "outputs": [output]}
        for t, output in enumerate(outputs)
    ]
    path.write_text(json.dumps(answers))


def _single_array(path: Path) -> None:
    """Choices under a name of their own; an empty row ends each request."""
    ended = np.pad(_requests(), ((0, 0), (0, 1), (0, 0), (0, 0)))
    np.savez_compressed(path, routing=ended.reshape(-1, *ended.shape[2:]))


def _router_traces(path: Path) -> None:
    """Megatron's records of each step, layer and rank, with those of a draft layer."""
    path.mkdir()
    for rank in range(2):
        lines = []
        for t, i in np.ndindex(4, 2):
            ids = CHOICES[t, rank, :, i].tolist()
            record = {"step": 10 + t, "stage": "pre_dispatch", "block": "decoder"}
            record |= {"layer": LAYERS[i], "rank": rank, "num_tokens": len(ids), "topk": 2}
            lines.append(record | {"top_indices": ids})
            lines.append(record | {"block": "mtp", "mtp_idx": 0, "layer": 0, "top_indices": ids})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (path / f"router_trace_rank{rank}.jsonl").write_text(text)


def _routes() -> list[dict[str, Any]]:
    """A row a token and layer, requests one after another."""
    return [
        {"req_id": f"r{t}", "token_idx": d, "layer": LAYERS[i], "topk_ids": ids[d, i].tolist()}
        for t, ids in enumerate(CHOICES.reshape(4, -1, 2, CHOICES.shape[-1]))
        for d, i in np.ndindex(len(ids), 2)
    ]


def _route_log(path: Path) -> None:
    meta = {"type": "meta", "model_id": "m", "top_k": 2, "layers_logged": LAYERS}
    lines = [meta, *({"type": "route", **row, "topk_weights": [0.6, 0.4]} for row in _routes())]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _token_table(path: Path) -> None:
    lines = [f'{r["layer"]},"{r["topk_ids"]}",{r["req_id"]}' for r in _routes()]
    path.write_text("\n".join(["layer,topk_ids,req_id", *lines, ""]))


def _rows() -> list[dict[str, Any]]:
    return [
        {"step": 10 + t, "layer": LAYERS[i], "expert": e, "tokens": int(COUNTS[t, i, e])}
        for t, i, e in np.ndindex(*COUNTS.shape)
    ]


def _csv(path: Path) -> None:
    lines = [",".join(map(str, row.values())) for row in _rows()]
    path.write_text("step,layer,expert,tokens\n" + "\n".join(lines) + "\n")


def _json(path: Path) -> None:
    path.write_text(json.dumps(_rows()))


def _layer_lines(path: Path) -> None:
    lines = [
        {"iteration": 10 + t, "layer": LAYERS[i], "tokens_per_expert": COUNTS[t, i].tolist()}
        for t, i in np.ndindex(*COUNTS.shape[:2])
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _dumped_counts(path: Path) -> None:
    total = COUNTS.sum(axis=0).tolist()
    path.write_text(
        json.dumps({"counts": {f"layer_{i}": row for i, row in zip(LAYERS, total, strict=True)}})
    )


def _rank_tables(path: Path) -> None:
    path.mkdir()
    for rank in range(2):
        rows = [
            f"{10 + t},{LAYERS[i]},{e},{SOURCE_COUNTS[t, rank, i, e]}"
            for t, i, e in np.ndindex(*COUNTS.shape)
        ]
        name = f"expert_distribution_rank{rank}_timestamp1.5.csv"
        (path / name).write_text("\n".join(["step,layer_id,expert_id,count", *rows, ""]))


def _rank_loads(path: Path) -> None:
    path.mkdir()
    for rank in range(2):
        root = {"ep_rank": rank, "ep_size": 2, "logical_count": SOURCE_COUNTS[:, rank].sum(axis=0)}
        torch_archive.save(path / f"run-TP{rank}.expert-load.pt", root)


def _map(engine: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        context = MapContext(num_hidden_layers=NUM_DECODER_LAYERS)
        eq.write_map(_PLACEMENT, path, format=engine, context=context)

    return write


def _model_maps(path: Path) -> None:
    """What HYGON's plug-in for vLLM records."""
    name = "vllm_offline_eplb_physical_to_logical_by_model"
    maps = {"Model": {"num_moe_layers": 2, "physical_to_logical_map": SLOTS.tolist()}}
    path.write_text(json.dumps({"version": 2, "format": name, "model_maps": maps}))


def _saved_plan(path: Path) -> None:
    """DeepSeek's EPLB's answer, as people save it."""
    copies = np.array([np.bincount(row) for row in SLOTS])
    torch_archive.save(path, {"phy2log": SLOTS, "logcnt": copies})


TRACES: dict[str, Callable[[Path], None]] = {
    "run.safetensors": lambda path: eq.write_trace(trace(), path) and None,
    "dump": _dump,
    "raw": _raw,
    "pickles": _pickles,
    "stat.pt": _stat,
    "stat.json": _stat,
    "passes": _passes,
    "stats.jsonl": _load_stats,
    "history.json": _history,
    "hotness.json": _hotness,
    "load.pt": _load,
    "counts.npz": _counts_archive,
    "choices.npz": _choices_archive,
    "counts.npy": lambda path: np.save(path, COUNTS),
    "answers.json": _answers,
    "sglang.jsonl": _sglang_answers,
    "stream.txt": _stream,
    "tensors.json": _tensors,
    "routing.npz": _single_array,
    "router_traces": _router_traces,
    "routes.jsonl": _route_log,
    "tokens.csv": _token_table,
    "table.csv": _csv,
    "table.json": _json,
    "layers.jsonl": _layer_lines,
    "dumped.json": _dumped_counts,
    "rank_tables": _rank_tables,
    "rank_loads": _rank_loads,
}
"""Writers of recordings, by the file name to give them."""

MAPS: dict[str, Callable[[Path], None]] = {
    "map.json": _map("equipoise"),
    "map.yaml": _map("trtllm"),
    "location.json": _map("sglang"),
    "location.pt": _map("sglang"),
    "record.jsonl": _map("vllm-41141"),
    "moe_rows.json": _map("vllm-49572"),
    "decoder_rows.json": _map("vllm-53022"),
    "expert_map.json": _map("ascend"),
    "models.json": _model_maps,
    "phy2log.pt": _saved_plan,
}
"""Writers of maps, by the file name to give them."""

OPTIONS = {
    "pickles": ("--allow-pickle",),
    "sglang.jsonl": ("--top-k", "2"),
    "moe_rows.json": ("--format", "vllm-49572"),
    "decoder_rows.json": ("--format", "vllm-53022", "--layers", "3-4"),
}
"""What else a reader needs to know of some of them."""


def write_sample(folder: Path, name: str) -> Path:
    """Write the valid file or directory of that name into a folder."""
    (TRACES | MAPS)[name](folder / name)
    return folder / name
