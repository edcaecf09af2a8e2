// kine with its SQLite driver alone: upstream's main links the servers and clients of five other databases. The flags are those that vcluster gives.
package main

import (
	"context"
	"errors"
	"flag"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/generic"
	_ "github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/server"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
)

func main() {
	endpoint := flag.String("endpoint", "sqlite://", "the database, sqlite://FILE[?PARAMETERS]")
	listen := flag.String("listen-address", "unix://kine.sock", "where etcd's API is served, unix://FILE or HOST:PORT")
	flag.String("metrics-bind-address", "0", "metrics are not served; 0 says so")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, *endpoint, *listen); err != nil {
		logrus.Fatal(err)
	}
}

func serve(ctx context.Context, endpoint, address string) error {
	// The database is closed after the last call was answered.
	open, close := context.WithCancel(context.Background())
	users := &sync.WaitGroup{}
	defer users.Wait()
	defer close()
	_, backend, err := drivers.New(open, users, &drivers.Config{
		Endpoint:             endpoint,
		ConnectionPoolConfig: generic.ConnectionPoolConfig{MaxIdle: 20, MaxIdleTime: 2 * time.Minute},
		CompactTimeout:       5 * time.Second,
		CompactMinRetain:     1000,
		CompactBatchSize:     1000,
		PollBatchSize:        500,
	})
	if err != nil {
		return err
	}
	if err := backend.Start(open); err != nil {
		return err
	}
	network, scheme := "tcp", "http"
	if file, is := strings.CutPrefix(address, "unix://"); is {
		network, scheme, address = "unix", "unix", file
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	// Sizes of calls as etcd bounds them.
	api := grpc.NewServer(grpc.MaxRecvMsgSize(2<<20), grpc.MaxSendMsgSize(1<<31-1))
	server.New(backend, scheme, 5*time.Second, "3.6.11").Register(api)
	go func() {
		<-ctx.Done()
		time.AfterFunc(2*time.Second, api.Stop)
		api.GracefulStop()
	}()
	return api.Serve(listener)
}
