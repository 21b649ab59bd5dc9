// Package gateway tests the gateway as a process of its own: in front of
// instances of the Dify simulator and of scripted ones, with the clients that
// people use, with what slow, broken and hostile clients send, and with a look
// at its memory.
package gateway
