// Command engine answers the calls of Spark Connect by which Berth recognizes a ready engine, and no
// other. It starts in milliseconds in 10 MB of memory, so that hundreds of pods fit on a small node: with
// it everything about many sessions is real but for the engine.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	address = ":15002" // where Berth expects the engine of a pod
	version = "4.0.0"
	service = "/spark.connect.SparkConnectService/"

	// A message of gRPC begins with a flag and its length.
	prefixSize     = 5
	maxRequestSize = 1 << 20

	statusOK            = "0"
	statusInvalid       = "3"
	statusUnimplemented = "12"
)

func main() {
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	server := &http.Server{Handler: http.HandlerFunc(serve), ReadHeaderTimeout: 10 * time.Second}
	server.Protocols = new(http.Protocols)
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() {
		<-stop.Done()
		_ = server.Close()
	}()
	listener, err := net.Listen("tcp", address)
	if err == nil {
		log.Print("listening") // the time of this line is when clients can connect
		err = server.Serve(listener)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		log.Print(err)
		os.Exit(1)
	}
}

func serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	request, err := readMessage(r.Body)
	if err != nil {
		end(w, statusInvalid, err.Error())
		return
	}
	session := text(1, sessionID(request))
	switch r.URL.Path {
	case service + "AnalyzePlan": // Berth asks for the version only.
		writeMessage(w, append(session, text(8, string(text(1, version)))...))
	case service + "ReleaseSession":
		writeMessage(w, session)
	default:
		end(w, statusUnimplemented, "only the version and releases are answered")
		return
	}
	end(w, statusOK, "")
}

func end(w http.ResponseWriter, status, message string) {
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", status)
	if message != "" {
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", message)
	}
}

func readMessage(body io.Reader) ([]byte, error) {
	var prefix [prefixSize]byte
	if _, err := io.ReadFull(body, prefix[:]); err != nil {
		return nil, fmt.Errorf("no message: %w", err)
	}
	size := binary.BigEndian.Uint32(prefix[1:])
	if size > maxRequestSize {
		return nil, fmt.Errorf("a message of %d bytes exceeds %d", size, maxRequestSize)
	}
	message := make([]byte, size)
	if _, err := io.ReadFull(body, message); err != nil {
		return nil, fmt.Errorf("incomplete message: %w", err)
	}
	return message, nil
}

func writeMessage(w io.Writer, message []byte) {
	framed := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	// An error means that the client is gone.
	_, _ = w.Write(append(framed, message...))
}

// text encodes a field of Protocol Buffers that has a length.
func text(field uint64, value string) []byte {
	encoded := binary.AppendUvarint(nil, field<<3|2)
	encoded = binary.AppendUvarint(encoded, uint64(len(value)))
	return append(encoded, value...)
}

// sessionID is field 1 of all requests, which writers put first.
func sessionID(request []byte) string {
	if len(request) == 0 || request[0] != 1<<3|2 {
		return ""
	}
	size, read := binary.Uvarint(request[1:])
	rest := request[1+max(read, 0):]
	if read <= 0 || size > uint64(len(rest)) {
		return ""
	}
	return string(rest[:size])
}
