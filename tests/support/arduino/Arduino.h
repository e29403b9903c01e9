// As much of Arduino as examples/analog needs, for a compiler of this machine: the line is what the test hands over.
#pragma once
#include <cstddef>
#include <cstdint>

struct SerialPort {
  void begin(long) {}
  int read();
  int availableForWrite();
  size_t write(const uint8_t *data, size_t n);
};
extern SerialPort Serial;
uint32_t micros();
int analogRead(int pin);
