package mitm

import (
	"encoding/binary"
	"fmt"
)

// Frames of HTTP/2 (RFC 9113, section 6).
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	framePriority     = 0x2
	frameReset        = 0x3
	frameSettings     = 0x4
	framePromise      = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindow       = 0x8
	frameContinuation = 0x9

	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20

	frameHead = 9 // bytes
	// maxFrame is the longest payload that we take, and send: the least that all do.
	maxFrame = 16 << 10
)

// Settings (RFC 9113, section 6.5.2; RFC 8441, section 3).
const (
	settingTableSize    = 0x1
	settingPush         = 0x2
	settingStreams      = 0x3
	settingWindow       = 0x4
	settingFrameSize    = 0x5
	settingHeaderList   = 0x6
	settingConnect      = 0x8
	defaultWindow       = 65535
	maxWindow           = 1<<31 - 1
	defaultTable        = 4096
	mostFrameSize       = 1<<24 - 1
	maxStreamID         = 1<<31 - 1
	sizeOfSetting       = 6
	sizeOfWindowPayload = 4
	sizeOfPriority      = 5
	sizeOfPing          = 8
	sizeOfGoAway        = 8
	sizeOfReset         = 4
)

// errorCode says why a stream or connection ends (RFC 9113, section 7).
type errorCode uint32

const (
	codeNone         errorCode = 0x0
	codeProtocol     errorCode = 0x1
	codeInternal     errorCode = 0x2
	codeFlowControl  errorCode = 0x3
	codeStreamClosed errorCode = 0x5
	codeFrameSize    errorCode = 0x6
	codeRefused      errorCode = 0x7
	codeCancel       errorCode = 0x8
	codeCompression  errorCode = 0x9
	codeCalm         errorCode = 0xb
	codeHTTP1        errorCode = 0xd
)

var errorNames = map[errorCode]string{
	codeNone: "NO_ERROR", codeProtocol: "PROTOCOL_ERROR", codeInternal: "INTERNAL_ERROR", codeFlowControl: "FLOW_CONTROL_ERROR",
	0x4: "SETTINGS_TIMEOUT", codeStreamClosed: "STREAM_CLOSED", codeFrameSize: "FRAME_SIZE_ERROR", codeRefused: "REFUSED_STREAM",
	codeCancel: "CANCEL", codeCompression: "COMPRESSION_ERROR", 0xa: "CONNECT_ERROR", codeCalm: "ENHANCE_YOUR_CALM",
	0xc: "INADEQUATE_SECURITY", codeHTTP1: "HTTP_1_1_REQUIRED",
}

func (c errorCode) String() string {
	if name, ok := errorNames[c]; ok {
		return name
	}
	return fmt.Sprintf("error %#x", uint32(c))
}

// connectionError is what a peer does for which its whole connection ends.
type connectionError struct {
	code   errorCode
	detail string
}

func (e *connectionError) Error() string { return "HTTP/2: " + e.detail + " (" + e.code.String() + ")" }

// frame is the head of one.
type frame struct {
	length int
	kind   uint8
	flags  uint8
	stream uint32
}

func (f frame) has(flag uint8) bool { return f.flags&flag != 0 }

// check checks a frame's length, and whether it is on a stream or on none.
func (f frame) check(length int, onStream bool) error {
	switch {
	case f.length != length:
		return &connectionError{codeFrameSize, fmt.Sprintf("a frame of kind %d with %d bytes", f.kind, f.length)}
	case (f.stream != 0) != onStream:
		return &connectionError{codeProtocol, fmt.Sprintf("a frame of kind %d on stream %d", f.kind, f.stream)}
	}
	return nil
}

func parseFrame(p []byte) frame {
	return frame{
		length: int(p[0])<<16 | int(p[1])<<8 | int(p[2]),
		kind:   p[3], flags: p[4],
		stream: binary.BigEndian.Uint32(p[5:]) & maxStreamID,
	}
}

func appendFrame(p []byte, length int, kind, flags uint8, stream uint32) []byte {
	p = append(p, byte(length>>16), byte(length>>8), byte(length), kind, flags)
	return binary.BigEndian.AppendUint32(p, stream)
}

func appendWindow(p []byte, stream, increment uint32) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(p, sizeOfWindowPayload, frameWindow, 0, stream), increment)
}

func appendReset(p []byte, stream uint32, code errorCode) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(p, sizeOfReset, frameReset, 0, stream), uint32(code))
}

func appendGoAway(p []byte, last uint32, code errorCode) []byte {
	p = binary.BigEndian.AppendUint32(appendFrame(p, sizeOfGoAway, frameGoAway, 0, 0), last)
	return binary.BigEndian.AppendUint32(p, uint32(code))
}

// appendSettings takes identifiers and values in turn.
func appendSettings(p []byte, settings ...uint32) []byte {
	p = appendFrame(p, len(settings)/2*sizeOfSetting, frameSettings, 0, 0)
	for i := 0; i < len(settings); i += 2 {
		p = binary.BigEndian.AppendUint16(p, uint16(settings[i]))
		p = binary.BigEndian.AppendUint32(p, settings[i+1])
	}
	return p
}

// appendBlock appends a header block, in as many frames as it takes.
func appendBlock(p []byte, stream uint32, block []byte, end bool) []byte {
	kind, flags := uint8(frameHeaders), uint8(0)
	if end {
		flags = flagEndStream
	}
	for {
		n := min(len(block), maxFrame)
		if n == len(block) {
			flags |= flagEndHeaders
		}
		p = append(appendFrame(p, n, kind, flags, stream), block[:n]...)
		if block = block[n:]; len(block) == 0 {
			return p
		}
		kind, flags = frameContinuation, 0
	}
}
