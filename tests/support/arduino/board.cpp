// Runs the sketch for ctypes: bytes in, time on, bytes out.
#include "Arduino.h"
#include <tinybridge.h>

#include "analog.ino"

SerialPort Serial;
static const uint8_t *input;
static size_t input_n;
static uint8_t *output;
static size_t output_n;
static uint32_t now_us;
static int level = 300;

int SerialPort::read()
{
  if (input_n == 0) {
    return -1;
  }
  input_n--;
  return *input++;
}

int SerialPort::availableForWrite()
{
  return 63;
}

size_t SerialPort::write(const uint8_t *data, size_t n)
{
  for (size_t i = 0; i < n; i++) {
    output[output_n++] = data[i];
  }
  return n;
}

uint32_t micros()
{
  return now_us;
}

int analogRead(int pin)
{
  return pin == 0 ? level : 7;
}

extern "C" void sketch_setup(uint32_t at_us)
{
  now_us = at_us;
  setup();
}

extern "C" size_t sketch_run(const uint8_t *data, size_t n, uint32_t us, int value, uint8_t *out)
{
  input = data;
  input_n = n;
  output = out;
  output_n = 0;
  level = value;
  for (uint32_t end = now_us + us; now_us != end; now_us += 1000) {
    loop();
  }
  return output_n;
}
