"""The way from a picture to the inputs of a model: file -> pixels -> inputs, by the rules of the contract.

In: any picture that Pillow reads, and a contract. Out: uint8 arrays by input name. `decode` reads a picture. `views`
computes the inputs. `bicubic` is the resize that `views` and its twin on the GPU use. `names` names a picture.

Other folders use: read_image, decoder, configure_pillow, DEFAULT_MAX_PIXELS, MAX_ENCODED_BYTES of decode; ImageSource,
display_name, named_path, printable, is_picture_name, picture_extensions, UNREAD_PICTURES of names; make_inputs of
views; Pixels of bicubic. The twins of the rules use: WEIGHT_BITS, bicubic_table of bicubic; enlarged_side,
fragment_positions, neighbours of views.
"""
