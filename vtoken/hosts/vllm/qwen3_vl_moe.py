# pyright: reportMissingImports=false
"""Qwen3-VL with experts in vLLM: processor and tower are those without."""

from __future__ import annotations

from vllm.model_executor.models import qwen3_vl_moe as stock
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtoken.hosts.vllm.qwen3_vl import DummyInputs, GatedQwen3, Processor


@MULTIMODAL_REGISTRY.register_processor(Processor, info=stock.Qwen3VLMoeProcessingInfo, dummy_inputs=DummyInputs)
class GatedQwen3VLMoe(GatedQwen3, stock.Qwen3VLMoeForConditionalGeneration):
    """Qwen3-VL with experts."""

    module = stock
