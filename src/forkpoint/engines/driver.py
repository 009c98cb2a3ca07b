"""What runs in the engine's own process and environment: load vLLM, answer the prompts, record. `launch` starts it.

It needs neither transformers of the version that the comparison takes nor forkpoint to be installed there: the folder of the
package is on the path, and the job comes as a file.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

USUAL = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""The model has to live in this process; threads are not bound, since other work may go on."""


CACHE_BYTES = 1 << 30
"""Memory of the cache on a CPU, where vLLM would take nine tenths of the machine's."""


def main(job: Path) -> None:
    """Do a job: a JSON object with `model`, `prompts`, `folder`, `max_tokens`, `sampling` and `engine`, arguments of `vllm.LLM`."""
    for name, value in USUAL.items():
        os.environ.setdefault(name, value)
    task: dict[str, Any] = json.loads(job.read_text(encoding="utf-8"))
    import vllm  # pyright: ignore[reportMissingImports]
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    from forkpoint.engines.vllm_adapter import record_engine

    longest = max(map(len, task["prompts"])) + task["max_tokens"]
    options: dict[str, Any] = {
        "enforce_eager": True, "skip_tokenizer_init": True, "seed": 0, "max_model_len": longest + 1, **task["engine"],
    }  # fmt: skip
    if current_platform.is_cpu():
        options.setdefault("kv_cache_memory_bytes", CACHE_BYTES)
    llm = vllm.LLM(task["model"], **options)
    record_engine(llm, task["prompts"], task["folder"], max_tokens=task["max_tokens"], **task["sampling"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
