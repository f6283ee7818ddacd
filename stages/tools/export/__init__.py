"""`threadloom export`: a trained model as a folder for Hugging Face's libraries.

May import: all above.
"""

from threadloom.stages.tools.export.command import export as export
