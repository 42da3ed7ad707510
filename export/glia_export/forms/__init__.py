"""Rewriting of a model before it is traced, so that engines run it well. The rewritten model computes the same.

In: a model of any family. Out: a copy to trace. Each family has one file that rewrites its own modules, and `backbones`
rewrites timm's modules.

Other folders use: export_form of table.
"""
