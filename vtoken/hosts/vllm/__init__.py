# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""The plug-in for vLLM: the gate runs in the processor, before a request is scheduled; see docs/vllm.md.

vLLM calls ``register`` through the entry point ``vllm.general_plugins``, in each of its processes and maybe more than
once. Nothing of vLLM is imported before that.
"""

from __future__ import annotations

MODELS = {
    "VTokenQwen2_5_VLForConditionalGeneration": "vtoken.hosts.vllm.qwen2_5_vl:GatedQwen2_5_VL",
    "VTokenQwen3VLForConditionalGeneration": "vtoken.hosts.vllm.qwen3_vl:GatedQwen3VL",
    "VTokenQwen3VLMoeForConditionalGeneration": "vtoken.hosts.vllm.qwen3_vl_moe:GatedQwen3VLMoe",
    "VTokenLlavaOnevisionForConditionalGeneration": "vtoken.hosts.vllm.llava_onevision:GatedLlavaOnevision",
}


def register() -> None:
    """Add the gated models under names of their own; stock models stay as they are."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for name, place in MODELS.items():
        if name not in known:
            ModelRegistry.register_model(name, place)
