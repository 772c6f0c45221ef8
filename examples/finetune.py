"""Fine-tune with a plan in the loop: the loss and its gradients come from the tokens that the plan leaves.

python examples/finetune.py FOLDER [STEPS]

The wrapped model takes what the stock one takes, so the loop is an ordinary one; the same holds for the Trainer of
transformers and for TRL. ``python -m training.reference.tune`` does it on videos, resumable, with adapters.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import Qwen2VLImageProcessorPil

import vtoken
from vtoken.reference import data
from vtoken.reference.questions import ask_image

PLAN, KEEP, FRAME = "divprune", 0.5, 40


def sample(model: Any, tokenizer: Any, pictures: Any, seed: int) -> dict[str, Any]:
    """Inputs and labels of one question about one frame of a training clip."""
    clip = data.clip(seed, "train")
    question = ask_image(clip.script, FRAME)[0]
    inputs = pictures(images=[clip.frame(FRAME)], return_tensors="pt")
    cells = int(inputs["image_grid_thw"].prod()) // model.config.vision_config.spatial_merge_size**2
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}
    prompt = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(prompt.replace("<|image_pad|>", "<|image_pad|>" * cells)).input_ids
    answer = tokenizer(question.answer).input_ids + [tokenizer.eos_token_id]
    ids = torch.tensor([prompt + answer])
    labels = torch.tensor([[-100] * len(prompt) + answer])
    kinds = (ids == model.config.image_token_id).long()
    return dict(inputs) | {"input_ids": ids, "labels": labels, "mm_token_type_ids": kinds}


def main(out: str, steps: str = "20") -> None:
    """Train all weights for some steps and write the model."""
    model, tokenizer = vtoken.load("reference")
    vision = model.config.vision_config
    pictures = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size, merge_size=vision.spatial_merge_size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    vtoken.wrap(model, PLAN, keep=KEEP)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step in range(int(steps)):
        loss = model(**sample(model, tokenizer, pictures, seed=step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        report = model.vtoken.report
        print(f"step {step + 1} of {steps}, {report.tokens} of {report.cells} tokens, loss {loss:.4f}")
    vtoken.unwrap(model)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
