"""The serial link between microcontrollers and a TinyLCM device: its rooms are built with the firmware bridge."""
