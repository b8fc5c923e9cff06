"""The workflow's steps: files and settings in, files and a record out. One module a step."""
