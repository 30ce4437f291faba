"""Tables from any file that holds one, and tables for spreadsheets.

`reading` is the one reader of the command line and of the page; `text` and `formats` know the kinds
of files, `writing` writes what every strict reader reads back.
"""
