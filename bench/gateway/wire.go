//go:build linux

package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// What client and backend say to each other: messages in Dify's form, with
// numbers at fixed places, so that making and checking them costs next to
// nothing.

const (
	// requestBytes is how large the body of each request is.
	requestBytes = 1024
	// eventBytes is how large each event is.
	eventBytes = 160
	// path is what a chat application's users call.
	path = "/v1/chat-messages"
	// rateParameter asks for an endless stream with so many events a second; 0
	// is one event and then silence.
	rateParameter = "bench_rate"

	requestIntro = `{"inputs":{},"user":"bench","query":"`
	requestIDAt  = len(requestIntro)

	answerIntro = `{"event":"message","mode":"chat","answer":"`
	answerRest  = `","task_id":"0b5b4d4e-9f5c-4b0c-9d86-3a2f6d6c1e11","message_id":"5ad4cb98-f0c7-4085-b384-88c403be6290",` +
		`"conversation_id":"45701982-8118-4bc5-8e9b-64562b4555f2","metadata":{"usage":{"prompt_tokens":1033,` +
		`"completion_tokens":128,"total_tokens":1161},"retriever_resources":[]},"created_at":1705395332}`

	eventIntro  = `data: {"event":"message","task_id":"`
	eventMiddle = `","message_id":"`
	eventAnswer = `","answer":"`
	eventEnd    = "\"}\n\n"

	streamAt  = len(eventIntro)
	numberAt  = streamAt + idBytes + len(eventMiddle)
	timeAt    = numberAt + idBytes + len(eventAnswer)
	fillAt    = timeAt + idBytes
	fillBytes = eventBytes - fillAt - len(eventEnd)

	// idBytes is the length of a number on the wire, in hexadecimal digits.
	idBytes = 16
)

// putID writes n at the start of b.
func putID(b []byte, n uint64) {
	const digits = "0123456789abcdef"
	for i := idBytes - 1; i >= 0; i-- {
		b[i] = digits[n&15]
		n >>= 4
	}
}

func getID(b []byte) (uint64, error) {
	var raw [idBytes / 2]byte
	if len(b) < idBytes {
		return 0, errors.New("a number is cut off")
	}
	if _, err := hex.Decode(raw[:], b[:idBytes]); err != nil {
		return 0, fmt.Errorf("a number reads %q", b[:idBytes])
	}
	var n uint64
	for _, c := range raw {
		n = n<<8 | uint64(c)
	}
	return n, nil
}

// request is a POST with room for its number at idAt; rate below zero asks for a
// plain answer.
func request(host string, rate int) (text []byte, idAt int) {
	target, mode := path, "blocking"
	if rate >= 0 {
		target, mode = path+"?"+rateParameter+"="+strconv.Itoa(rate), "streaming"
	}
	body := requestIntro + strings.Repeat("0", idBytes) + " %s" + `","response_mode":"` + mode + `"}`
	body = fmt.Sprintf(body, strings.Repeat("x", requestBytes-len(body)+len("%s")))
	intro := "POST " + target + " HTTP/1.1\r\nHost: " + host + "\r\nUser-Agent: bench\r\nAccept: */*\r\n" +
		"Authorization: Bearer app-benchbenchbenchbenchbench\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n"
	return []byte(intro + body), len(intro) + requestIDAt
}

// answer is the whole answer to a plain request, with its number at idAt.
func answer() (text []byte, idAt int) {
	body := answerIntro + strings.Repeat("0", idBytes) + answerRest
	intro := "HTTP/1.1 200 OK\r\nServer: gunicorn\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n"
	return []byte(intro + body), len(intro) + len(answerIntro)
}

// checkAnswer says what is wrong with the body of an answer to request id.
func checkAnswer(body []byte, id uint64) error {
	rest, ok := bytes.CutPrefix(body, []byte(answerIntro))
	if !ok || len(rest) < idBytes || string(rest[idBytes:]) != answerRest {
		return fmt.Errorf("answered %.200q", body)
	}
	if got, err := getID(rest); err != nil || got != id {
		return fmt.Errorf("the answer is that of request %x, not %x", got, id)
	}
	return nil
}

const streamHead = "HTTP/1.1 200 OK\r\nServer: gunicorn\r\nConnection: keep-alive\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"

// event is an event as a chunk, with zeros for its numbers; its text begins at
// textAt.
func event() (chunk []byte, textAt int) {
	zeros := strings.Repeat("0", idBytes)
	text := eventIntro + zeros + eventMiddle + zeros + eventAnswer + zeros + strings.Repeat("w", fillBytes) + eventEnd
	size := strconv.FormatInt(int64(len(text)), 16) + "\r\n"
	return []byte(size + text + "\r\n"), len(size)
}

// checkEvent returns when an event was sent, in nanoseconds, after it has
// checked that it is event number of stream id and nothing else.
func checkEvent(text []byte, id, number uint64) (sent int64, err error) {
	if len(text) != eventBytes ||
		string(text[:streamAt]) != eventIntro ||
		string(text[streamAt+idBytes:numberAt]) != eventMiddle ||
		string(text[numberAt+idBytes:timeAt]) != eventAnswer ||
		string(text[eventBytes-len(eventEnd):]) != eventEnd {
		return 0, fmt.Errorf("an event reads %.300q", text)
	}
	if got, err := getID(text[streamAt:]); err != nil || got != id {
		return 0, fmt.Errorf("the event is of stream %x, not %x", got, id)
	}
	if got, err := getID(text[numberAt:]); err != nil || got != number {
		return 0, fmt.Errorf("event %d came when %d was due", got, number)
	}
	at, err := getID(text[timeAt:])
	return int64(at), err
}
