# SPDX-License-Identifier: Apache-2.0
"""MXFP4 MoE weights (part of the sparkd lab's simulated vLLM: this file is read and counted, never imported).

It has the shape of the published deployment's file after the mod fix-ds4-gpu-cache: a cleanup block after each of the two
calls of _setup_kernel(). Applied twice, the second `del` of a block refers to freed locals.
"""

import torch
from torch.nn import Parameter
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase


class Mxfp4MoEMethod(FusedMoEMethodBase):
    """MXFP4 MoE quantization method, for checkpoints whose experts are serialized in MXFP4."""

    def _setup_kernel(self, layer, w13, w2, w13_scale, w2_scale, w13_bias, w2_bias) -> None:
        layer.w13_weight = Parameter(w13, requires_grad=False)
        layer.w2_weight = Parameter(w2, requires_grad=False)
        layer.w13_weight_scale = Parameter(w13_scale, requires_grad=False)
        layer.w2_weight_scale = Parameter(w2_scale, requires_grad=False)
        self.moe_quant_config = self.get_fused_moe_quant_config(layer, w13_bias, w2_bias)
        self.kernel = self.make_kernel(layer, self.moe_quant_config)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        w13, w2 = layer.w13_weight, layer.w2_weight
        w13_scale, w2_scale = layer.w13_weight_scale, layer.w2_weight_scale
        w13_bias = getattr(layer, "w13_bias", None)
        w2_bias = getattr(layer, "w2_bias", None)

        if self.mxfp4_backend.is_monolithic:
            w13, w2, w13_scale, w2_scale = self.shuffle_for_monolithic(layer, w13, w2, w13_scale, w2_scale)
            self._setup_kernel(layer, w13, w2, w13_scale, w2_scale, w13_bias, w2_bias)
            del w13, w2, w13_scale, w2_scale, w13_bias, w2_bias
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return

        w13, w2, w13_scale, w2_scale = self.convert_to_kernel_format(layer, w13, w2, w13_scale, w2_scale)
        self._setup_kernel(layer, w13, w2, w13_scale, w2_scale, w13_bias, w2_bias)
        del w13, w2, w13_scale, w2_scale, w13_bias, w2_bias
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
