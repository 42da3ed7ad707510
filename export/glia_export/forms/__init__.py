"""What is rewritten in a model before it is traced, so that engines run it well. It computes the same.

In: a model of any family. Out: a copy to trace. One file holds what a family's own modules want, and `backbones` what
timm's do.

Other folders use: export_form of table.
"""
