"""The command `glia-rt`: one file a command.

In: arguments. Out: tables and rows on standard output, diagnostics on standard error, an exit status. `main` turns
errors into both, and nothing else does. `options` holds the options that commands share, `console` what they print.

Other folders use: main, cli of main.
"""
