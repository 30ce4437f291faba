"""Whether an artifacts tree adds up: its files among each other, and with what its weights say."""

from finsent.verification.tree import verify as verify
from finsent.verification.tree import verify_entrant as verify_entrant
