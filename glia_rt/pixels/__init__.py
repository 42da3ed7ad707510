"""A file -> pixels -> the inputs of a model, by the rules of the contract.

In: whatever Pillow reads, and a contract. Out: uint8 arrays by input name. `decode` reads any picture, `views` computes
the rules, `bicubic` is the resize that both it and the GPU take, `names` says what a picture is called.

Other folders use: read_image, decoder, configure_pillow, DEFAULT_MAX_PIXELS, MAX_ENCODED_BYTES of decode; ImageSource,
display_name, named_path, is_picture_name, picture_extensions of names; make_inputs of views; Pixels of bicubic. The
twins of the rules use: WEIGHT_BITS, bicubic_table of bicubic; enlarged_side, fragment_positions, neighbours of views.
"""
