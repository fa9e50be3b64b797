"""Rival of the service: the same large model in `transformers` answers pictures one by one.

`python -m benchmarks.serve.rival SECONDS THREADS DTYPE` prints answers a second and how many were
right.
`transformers`' own processor and `generate` handle each WebP file.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.serve.device import MAX_NEW_TOKENS
from benchmarks.serve.pool import QUESTIONS
from edge_agent.picture import PictureCodec
from projector.codec.answers import same_answer
from projector.models.pictures import read
from reference.demo.halves import CLOUD_MODEL
from reference.demo.testset import TestSet

_PICTURES = 32


def measure(seconds: float, threads: int, dtype: str) -> dict[str, float]:
    """Answer one question after another for some seconds."""
    torch.set_num_threads(threads)
    processor = AutoProcessor.from_pretrained(CLOUD_MODEL)
    model = AutoModelForImageTextToText.from_pretrained(CLOUD_MODEL, dtype=dtype).eval()
    test = TestSet.load("test", _PICTURES, QUESTIONS)
    files = [PictureCodec("webp", 80).encode(picture) for picture in test.pictures]

    def answer(row: int) -> str:
        asked = test.asked[row]
        picture = read(files[asked.picture])
        talk = [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": asked.text}],
            }
        ]
        prompt = processor.apply_chat_template(talk, add_generation_prompt=True)
        inputs = processor(images=picture, text=prompt, return_tensors="pt").to(model.dtype)
        with torch.inference_mode():
            made = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        fresh = made[0, inputs["input_ids"].shape[1] :]
        text: str = processor.decode(fresh, skip_special_tokens=True)
        return text.strip()

    for row in range(4):
        answer(row)
    done = right = 0
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        row = done % len(test.asked)
        right += same_answer(answer(row), test.asked[row].truth)
        done += 1
    return {"answers_per_s": done / spent, "right": right / done, "answers": done}


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
