"""`threadloom export`: a trained model as a folder for Hugging Face's libraries.

May import: all above.
"""

from threadloom.stages.tools.export.command import (
    export as export,
    output_options as output_options,
    print_export as print_export,
)
