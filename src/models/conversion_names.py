"""Names of public weights and ours, module by module.

`#` stands for one index, the same on both sides; `+` for the index one higher. On our side the parameters of a module
whose name contains `norm`, or starts with `bn`, are gamma, beta, moving_mean and moving_variance.
Sources of the names: the golden files of the released head (mmsegmentation naming), timm's VisionTransformer,
torchvision's MobileNetV2 and ResNet (and CSAIL's, with three convolutions in the stem), the repositories of AlignSeg,
of Swin, DeiT, DINO and MAE, and the arrays of AugReg's JAX files.
"""

# Plain Vision Transformers: what is left out besides the last norm, by the start of a name.
VIT_EXTRAS = {
    "timm_vit": ("head.", "pre_logits."),
    "deit_vit": ("head.", "head_dist.", "dist_token"),
    "augreg_vit": ("head.", "pre_logits."),
    "dino_vit": ("head.",),
    "mae_vit": ("head.", "fc_norm.", "mask_token", "decoder_"),
}
SWINS = ("swin", "mm_swin")
SOURCES = ("released_ecenet", *VIT_EXTRAS, *SWINS, "alignseg", "resnet", "resnet_bgr", "mobilenet_v2", "clip_text")

HEAD_MODULES = {
    "conv_seg": "classifier",
    "trans": "confidence",
    "learner.0": "class_mask.group",
    "learner.1": "class_mask.classify",
    "laterals.#": "laterals.#",
    "token_emb.#.cls_learner": "embeddings.#.linear",
    "proj.conv": "fusion",
    "proj.bn": "fusion_norm",
    "transfer.#.norm_low": "attentions.#.norm_pixel",
    "transfer.#.norm_high": "attentions.#.norm_class",
    "transfer.#.cross_attn.q.depthwise_conv.conv": "attentions.#.query_depthwise",
    "transfer.#.cross_attn.q.pointwise_conv.conv": "attentions.#.query_pointwise",
    "transfer.#.cross_attn.kv": "attentions.#.key_value",
    "transfer.#.cross_attn.proj": "attentions.#.proj",
    "transfer.#.norm_mlp": "attentions.#.norm_mlp",
    "transfer.#.mlp.0": "attentions.#.mlp_expand",
    "transfer.#.mlp.1": "attentions.#.mlp_depthwise",
    "transfer.#.mlp.4": "attentions.#.mlp_reduce",
    "gated_tokens.#.dynamic_layer": "updaters.#.dynamic",
    "gated_tokens.#.input_layer": "updaters.#.input",
    "gated_tokens.#.update_gate": "updaters.#.gate",
    "gated_tokens.#.norm_in": "updaters.#.gate_norm",
    "gated_tokens.#.norm_out": "updaters.#.dynamic_norm",
    "gated_tokens.#.fc_layer": "updaters.#.output",
    "gated_tokens.#.fc_norm": "updaters.#.output_norm",
    "ghost_up_layers.#.layers.#.primary.conv": "ghosts.+.#.primary",
    "ghost_up_layers.#.layers.#.primary.bn": "ghosts.+.#.primary_norm",
    "ghost_up_layers.#.layers.#.cheap.conv": "ghosts.+.#.cheap",
    "ghost_up_layers.#.layers.#.cheap.bn": "ghosts.+.#.cheap_norm",
    "layer_slcts.#.primary.0": "reconstruct.#.intrinsic",
    "layer_slcts.#.primary.1": "reconstruct.#.intrinsic_norm",
    "layer_slcts.#.cheap.0": "reconstruct.#.diverse",
    "layer_slcts.#.cheap.1": "reconstruct.#.diverse_norm",
    "layer_slcts.#.layer_channel_slct.0": "reconstruct.#.gate_reduce",
    "layer_slcts.#.layer_channel_slct.2": "reconstruct.#.gate_expand",
    "layer_slcts.#.conv_out": "reconstruct.#.combine",
    "norms.#": "reconstruct.#.norm.norm",
}
SWIN_MODULES = {
    "patch_embed.projection": "patch_embed.projection",
    "patch_embed.norm": "patch_embed.norm",
    "stages.#.blocks.#.norm1": "stages.#.blocks.#.norm1",
    "stages.#.blocks.#.attn.w_msa": "stages.#.blocks.#.attn",  # only the table of biases is its own
    "stages.#.blocks.#.attn.w_msa.qkv": "stages.#.blocks.#.attn.qkv",
    "stages.#.blocks.#.attn.w_msa.proj": "stages.#.blocks.#.attn.proj",
    "stages.#.blocks.#.norm2": "stages.#.blocks.#.norm2",
    "stages.#.blocks.#.ffn.layers.0.0": "stages.#.blocks.#.mlp.fc1",
    "stages.#.blocks.#.ffn.layers.1": "stages.#.blocks.#.mlp.fc2",
    "stages.#.downsample.norm": "stages.#.downsample.norm",
    "stages.#.downsample.reduction": "stages.#.downsample.reduction",
    "norm#": "norm#",
}
OFFICIAL_SWIN_MODULES = {
    "patch_embed.proj": "patch_embed.projection",
    "patch_embed.norm": "patch_embed.norm",
    "layers.#.blocks.#.norm1": "stages.#.blocks.#.norm1",
    "layers.#.blocks.#.attn": "stages.#.blocks.#.attn",  # only the table of biases is its own
    "layers.#.blocks.#.attn.qkv": "stages.#.blocks.#.attn.qkv",
    "layers.#.blocks.#.attn.proj": "stages.#.blocks.#.attn.proj",
    "layers.#.blocks.#.norm2": "stages.#.blocks.#.norm2",
    "layers.#.blocks.#.mlp.fc1": "stages.#.blocks.#.mlp.fc1",
    "layers.#.blocks.#.mlp.fc2": "stages.#.blocks.#.mlp.fc2",
    "layers.#.downsample.norm": "stages.#.downsample.norm",
    "layers.#.downsample.reduction": "stages.#.downsample.reduction",
    "norm#": "norm#",
}
# AugReg's arrays that have one name under timm's naming; queries, keys and values are joined besides.
AUGREG_NAMES = {
    "cls": "cls_token",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
    "Transformer/encoderblock_#/LayerNorm_0/scale": "blocks.#.norm1.weight",
    "Transformer/encoderblock_#/LayerNorm_0/bias": "blocks.#.norm1.bias",
    "Transformer/encoderblock_#/MultiHeadDotProductAttention_1/out/kernel": "blocks.#.attn.proj.weight",
    "Transformer/encoderblock_#/MultiHeadDotProductAttention_1/out/bias": "blocks.#.attn.proj.bias",
    "Transformer/encoderblock_#/LayerNorm_2/scale": "blocks.#.norm2.weight",
    "Transformer/encoderblock_#/LayerNorm_2/bias": "blocks.#.norm2.bias",
    "Transformer/encoderblock_#/MlpBlock_3/Dense_0/kernel": "blocks.#.mlp.fc1.weight",
    "Transformer/encoderblock_#/MlpBlock_3/Dense_0/bias": "blocks.#.mlp.fc1.bias",
    "Transformer/encoderblock_#/MlpBlock_3/Dense_1/kernel": "blocks.#.mlp.fc2.weight",
    "Transformer/encoderblock_#/MlpBlock_3/Dense_1/bias": "blocks.#.mlp.fc2.bias",
    "pre_logits/kernel": "pre_logits.fc.weight",
    "pre_logits/bias": "pre_logits.fc.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
}
VIT_MODULES = {
    "": "",  # pos_embed and cls_token
    "patch_embed.proj": "patch_embed.proj",
    "blocks.#.norm1": "blocks.#.norm1",
    "blocks.#.attn.qkv": "blocks.#.attn.qkv",
    "blocks.#.attn.proj": "blocks.#.attn.proj",
    "blocks.#.norm2": "blocks.#.norm2",
    "blocks.#.mlp.fc1": "blocks.#.mlp.fc1",
    "blocks.#.mlp.fc2": "blocks.#.mlp.fc2",
}
NORM_PARAMETERS = {
    "weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance",
}  # fmt: skip
IGNORED = ("relative_position_index", "num_batches_tracked")  # constants and counters of the released files
MOBILENET_MODULES = {
    "features.0.0": "features.0",
    "features.1.conv.0.0": "features.1.depthwise",
    "features.1.conv.1": "features.1.project",
    "features.#.conv.0.0": "features.#.expand",
    "features.#.conv.1.0": "features.#.depthwise",
    "features.#.conv.2": "features.#.project",
}
DEEP_STEM_MODULES = {
    "conv1": "stem.0.conv", "bn1": "stem.0.bn", "conv2": "stem.1.conv", "bn2": "stem.1.bn", "conv3": "stem.2.conv",
    "bn3": "stem.2.bn",
}  # fmt: skip
PLAIN_STEM_MODULES = {"conv1": "stem.0.conv", "bn1": "stem.0.bn"}
RESNET_MODULES = {
    "layer#.#.conv#": "layer#.#.conv#",
    "layer#.#.bn#": "layer#.#.bn#",
    "layer#.#.downsample.0": "layer#.#.downsample.conv",
    "layer#.#.downsample.1": "layer#.#.downsample.bn",
}
_REFINEMENT = (
    ("unify", "unify"), ("residual.0", "conv1"), ("residual.1", "norm1"), ("residual.2", "conv2"), ("norm", "norm2"),
)  # fmt: skip
_OFFSETS = (("0", "reduce"), ("1", "norm"), ("2", "offset"))
_CLASSIFIER = (("0", "conv"), ("1", "norm"), ("3", "classifier"))
_BRANCH = ("conv1", "norm1", "conv2", "norm2")
ALIGNSEG_MODULES = {
    **{f"RRB{k}a.{theirs}": f"laterals.{k - 1}.{ours}" for k in range(1, 6) for theirs, ours in _REFINEMENT},
    **{f"RRB{k}b.{theirs}": f"smooths.{k - 2}.{ours}" for k in range(2, 6) for theirs, ours in _REFINEMENT},
    **{f"CAB{k}.delta_gen1.{i}": f"sums.{k - 2}.offset_up.{ours}" for k in range(2, 6) for i, ours in _OFFSETS},
    **{f"CAB{k}.delta_gen2.{i}": f"sums.{k - 2}.offset_acc.{ours}" for k in range(2, 6) for i, ours in _OFFSETS},
    **{f"CAM.pool.{i + 1}": f"context.pooled.{_BRANCH[i]}" for i in range(4)},
    **{f"CAM.adapt.{i}": f"context.local.{_BRANCH[i]}" for i in range(4)},
    **{f"CAM.delta_gen.{theirs}": f"context.offset.{ours}" for theirs, ours in _OFFSETS},
    **{f"head.{theirs}": f"main.{ours}" for theirs, ours in _CLASSIFIER},
    **{f"dsn.{theirs}": f"auxiliary.{ours}" for theirs, ours in _CLASSIFIER},
}
