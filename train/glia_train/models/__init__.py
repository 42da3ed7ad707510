"""Families of models: one file for each family, and one table of all.

In: a frozen config. Out: a module that scores the inputs of a contract. `base` defines what a family must provide.

Other folders use: Model of base; family_of, read_config, source_of, untrained of table; GLIANet, ModelConfig,
GliaBlock, CrossAttention, DEFAULT_BACKBONE of glianet.
"""
